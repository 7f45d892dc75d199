"""Notices to other systems about each upload, from the event store's outbox to SNS.

`message` writes one, `topic` hands them to SNS, `sensor` takes them from the outbox in order. What a notice
tells was written in the transaction that made it true, so none is lost and none tells what never happened;
one may be sent twice. Alerts to people are in `alerts/`.
"""
