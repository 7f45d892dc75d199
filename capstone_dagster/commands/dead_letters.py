"""`capstone dlq`: shows dead letters and sends them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import join_local_stack, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, CsvOption, JsonRowsOption, StateOption
from capstone_dagster.commands.sections import Sections

if TYPE_CHECKING:
    from capstone_dagster.intake.queue import DeadLetter, UploadQueue

app = typer.Typer(
    cls=Sections,
    no_args_is_help=True,
    help="Show malformed messages and those that were delivered too often, and send them again.",
)


@app.command("list")
def dlq_list(
    as_json: JsonRowsOption = False, as_csv: CsvOption = False, state: StateOption = DEFAULT_STATE
) -> None:
    """List the dead letters, oldest first, each with the reason.

    Example: `capstone dlq list --json`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.intake.queue import DeadLetter

    form = terminal.format_of(as_json=as_json, as_csv=as_csv)
    # The receipt is useless once the command has ended.
    shown = [field.name for field in fields(DeadLetter) if field.name != "receipt"]
    with _dead_letters(state) as (_, letters):
        rows = [{name: asdict(letter)[name] for name in shown} for letter in letters]
    if not rows and form == "table":
        terminal.err.print("There are no dead letters.")
        return
    terminal.print_rows(rows, form, tables.dead_letters_table, columns=shown)


@app.command("show")
def dlq_show(
    message: Annotated[str, typer.Argument(help="A message id from the list, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print one dead letter's text.

    Example: `capstone dlq show 0f3c`
    """
    with _dead_letters(state) as (_, letters):
        letter = _one_letter(letters, message)
        reason = letter.reason or "delivered too often"
        terminal.note(f"{letter.message_id}: {reason}")
        print(letter.body)


@app.command("redrive")
def dlq_redrive(
    messages: Annotated[
        list[str] | None, typer.Argument(help="Message ids from the list, or their beginnings.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Send dead letters to the upload queue again, for example after a permission was granted.

    Example: `capstone dlq redrive --all`
    """
    if everything == bool(messages):
        raise typer.BadParameter("name the messages, or give --all")
    with _dead_letters(state) as (queue, letters):
        chosen = (
            list(letters) if everything else [_one_letter(letters, message) for message in messages or []]
        )
        for letter in chosen:
            queue.redrive(letter)
            letters.remove(letter)
    terminal.err.print(f"{len(chosen)} sent again.")


@contextmanager
def _dead_letters(state: Path) -> Iterator[tuple[UploadQueue, list[DeadLetter]]]:
    """The upload queue and its dead letters; those still in the list at the end return to the queue."""
    from capstone_dagster.clients import aws_client
    from capstone_dagster.intake.queue import UploadQueue

    join_local_stack(state)
    url = read_settings().required("queue_url")
    queue = UploadQueue(aws_client("sqs"), url)
    letters = queue.dead_letters()
    if (counted := queue.dead_letter_count()) > len(letters):
        terminal.err.print(
            f"SQS counts {counted} dead letters and delivered {len(letters)}. Another reader hides the "
            "others for a minute, or the count is out of date. Run the command again in a minute."
        )
    try:
        yield queue, letters
    finally:
        queue.put_back(letters)


def _one_letter(letters: Sequence[DeadLetter], message: str) -> DeadLetter:
    found = [letter for letter in letters if letter.message_id.startswith(message)]
    if len(found) != 1:
        raise typer.BadParameter(
            f"{len(found)} dead letters begin with {message!r}; `capstone dlq list` shows them"
        )
    return found[0]
