"""What a tick leaves to the next."""

import json

from capstone_dagster.intake.pending import Pending, read_cursor, write_cursor


def test_messages_that_wait_outlive_a_version_that_was_rolled_back() -> None:
    """A sensor that cannot read its cursor raises at each tick: no upload would be taken any more."""
    waiting = [Pending("m1", "receipt", {"upload": "key"}, 12.5, [("reason", "body")])]
    [kept] = json.loads(write_cursor(waiting))

    [read] = read_cursor(json.dumps([{**kept, "of_a_later_version": 1}]))

    assert read.run_keys == {"upload": "key"}
    assert (read.message_id, read.expires) == ("m1", 12.5)
