"""Notices to people: what failed, why, whether it is tried again, and when it is over.

`reading` looks at Dagster's records and the queues, `notices` groups what was found into incidents and
decides what is told when, `wording` writes it, `sending` hands it to SNS, `sensor` does these in turn. What
has not been sent is kept in the sensor's cursor: Dagster's own storage, not the event store, which may be
what failed.
"""
