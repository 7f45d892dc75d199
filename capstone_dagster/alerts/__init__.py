"""Alerts to people: what failed, why, whether it is retried, and when it is over.

`troubles` reads failures without a run, `incidents` groups everything into incidents and decides what is
announced when, `wording` writes it, and `alerting` runs all these and sends notices to SNS. Unsent notices
are kept in Dagster's storage, not in the event store, which may be what failed.
"""
