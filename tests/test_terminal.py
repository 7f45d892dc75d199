"""What comes from outside is shown as it is, whatever it would mean to the terminal's own markup."""

import csv
import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from capstone_dagster import terminal
from capstone_dagster import terminal_tables as tables

NOW = datetime(2026, 1, 22, 5, 23, 15, tzinfo=UTC)
# A closing tag that opens nothing, a style, an emoji code, an escape.
NASTY = ["[/gate]", "clip[final].mp4", "[red]a", "a:car:b", "b\\\\[bold]"]
EVENT = {
    "video_id": "v",
    "start_ms": 0,
    "end_ms": 1500,
    "label": "person",
    "track_id": 1,
    "detections": 3,
    "best_score": 0.9,
    "face_score": None,
    "truncated_start": False,
    "truncated_end": True,
    "started_at": NOW,
    "recorded_at_source": "name",
}
STATUS = {
    "video_id": "v",
    "external_id": "84",
    "camera": "gate",
    "state": "failed",
    "progress": 0.5,
    "updated_at": NOW,
    "failure_class": "undecodable-video",
    "message": "It is no video.",
    "recorded_at": NOW,
    "recorded_at_source": "name",
}
LETTER = {"message_id": "m", "sent_ms": 0, "reason": "not JSON", "body": "x"}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A wide stdout that remembers what it showed."""
    console = Console(file=io.StringIO(), width=400, highlight=False, emoji=False)
    monkeypatch.setattr(terminal, "out", console)
    return console


@pytest.mark.parametrize("nasty", NASTY)
def test_tables_show_names_as_they_are(shown: Console, nasty: str) -> None:
    rendered = {
        "event's label": tables.events_table([EVENT | {"label": nasty}]),
        "event's video": tables.events_table([EVENT, EVENT | {"video_id": nasty}]),
        **{
            name: tables.status_table([STATUS | {name: nasty}])
            for name in ("video_id", "external_id", "camera", "message")
        },
        **{name: tables.dead_letters_table([LETTER | {name: nasty}]) for name in ("reason", "body")},
    }
    for what, table in rendered.items():
        shown.file = io.StringIO()
        shown.print(table)
        assert nasty in shown.file.getvalue(), what


@pytest.mark.parametrize("on_terminal", [True, False])
@pytest.mark.parametrize("nasty", NASTY)
def test_progress_shows_names_as_they_are(
    nasty: str, on_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200, highlight=False, emoji=False, force_terminal=on_terminal)
    monkeypatch.setattr(terminal, "err", console)

    with terminal.progress(f"Preparing {nasty}") as report:
        report(f"Uploading {nasty}", 0.5)

    assert f"Uploading {nasty}" in file.getvalue()


def test_no_rows_still_have_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_rows([], "csv", "", columns=["event_id", "label"])

    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [["event_id", "label"]]
