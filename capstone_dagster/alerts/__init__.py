"""Alerts to people: what failed, why, whether it is retried, and when it is over.

`troubles` reads failures without a run, `incidents` groups everything into incidents and decides what is
announced when, `wording` writes it, `sending` sends it to SNS, and `alerting` runs all these. Unsent notices
are kept in Dagster's storage, not in the event store, which may be what failed.
"""
