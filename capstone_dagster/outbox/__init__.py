"""Notices to other systems about each upload, from the event store's outbox to SNS.

`message` writes one, `sensor` takes them from the outbox in order and hands them to SNS. A notice is recorded
in the transaction that makes its content true, so none is lost and none reports what never happened; one may
be sent twice. Alerts to people are in `alerts/`.
"""
