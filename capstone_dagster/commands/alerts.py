"""`capstone alerts`: shows sent alerts from the local stack's inbox, elsewhere how to receive them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.clients import aws_client
from capstone_dagster.commands.joining import join_local_stack, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, StateOption
from capstone_dagster.wall_clock import wall_clock

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

    from capstone_dagster.alerts.inbox import Received

_POLL_S = 2.0
_COLOURS = {"failure": "red", "update": "yellow", "recovery": "green"}


def alerts(
    tail: Annotated[int, typer.Option(min=1, help="Only the last ones, this many.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new notices until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects; with --follow, one object a line.")
    ] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show the alerts that were sent: what failed, why, what to do, and what is resolved.

    The local stack keeps them in an inbox. SNS keeps none, so elsewhere this prints how to subscribe.

    Example: `capstone alerts --tail 5`
    """
    from capstone_dagster.alerts.inbox import look_into

    join_local_stack(state)
    topic = read_settings().required("alert_topic_arn")
    sqs = aws_client("sqs")
    url = _inbox_url(sqs)
    if url is None:
        _show_how_to_subscribe(topic)
        raise typer.Exit(1)
    notices = look_into(sqs, url)
    if as_json and not follow:
        terminal.print_json([asdict(notice) for notice in notices[-tail:]])
        return
    for notice in notices[-tail:]:
        _show(notice, as_json=as_json)
    if follow:
        _follow(lambda: look_into(sqs, url), {notice.message_id for notice in notices}, as_json=as_json)
    elif not notices:
        terminal.err.print("No notice was sent yet.")


def _inbox_url(sqs: SQSClient) -> str | None:
    from botocore.exceptions import ClientError

    from capstone_dagster.alerts.inbox import INBOX_QUEUE

    with suppress(ClientError):  # missing, or hidden from this role
        return sqs.get_queue_url(QueueName=INBOX_QUEUE)["QueueUrl"]
    return None


def _show_how_to_subscribe(topic: str) -> None:
    text = (
        f"Notices go to {topic}, and SNS keeps none to be shown. Receive them by mail:\n\n"
        f"aws sns subscribe --topic-arn {topic} --protocol email --notification-endpoint you@example.com\n\n"
        "Their attributes kind, class, severity and environment can be filtered by (a filter policy)."
    )
    terminal.note(text)


def _follow(look: Callable[[], list[Received]], known: set[str], *, as_json: bool) -> None:
    with suppress(KeyboardInterrupt):  # the normal end
        while True:
            time.sleep(_POLL_S)
            for notice in look():
                if notice.message_id not in known:
                    known.add(notice.message_id)
                    _show(notice, as_json=as_json)


def _show(notice: Received, *, as_json: bool) -> None:
    from rich.text import Text

    if as_json:
        print(json.dumps(asdict(notice) | {"at": notice.at.isoformat()}), flush=True)
        return
    colour = _COLOURS.get(notice.attributes.get("kind", ""), "default")
    at = wall_clock(notice.at)
    text = Text.assemble((f"[{at}] ", "dim"), (notice.subject, colour))
    for line in _words(notice.body).splitlines():
        text.append(f"\n    {line}")
    terminal.out.print(text, soft_wrap=True)


def _words(body: str) -> str:
    """The text of a notice; CloudWatch's alarms, which use the same topic, are JSON."""
    try:
        alarm = json.loads(body)
        return f"{alarm['NewStateReason']}\n{alarm['AlarmDescription']}"
    except (ValueError, KeyError, TypeError):
        return body
