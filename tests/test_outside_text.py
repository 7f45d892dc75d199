"""What a stranger's key or camera cannot do to whoever reads it."""

import io
import logging

import pytest

from capstone_dagster import terminal
from capstone_dagster.logs.json_lines import TerminalFormatter
from capstone_dagster.outside_text import markdown, visible
from capstone_dagster.terminal_tables import status_table

CLEARS = "\x1b[2J\x1b]0;owned\x07gate"
TURNED = "gate\u202e4pm.exe"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gate/a.mp4", "gate/a.mp4"),
        ("현관/영상 1.mp4", "현관/영상 1.mp4"),
        (CLEARS, r"\x1b[2J\x1b]0;owned\x07gate"),
        (TURNED, r"gate\u202e4pm.exe"),
        ("a\rb\x9bc", r"a\rb\x9bc"),
        ("two\n\tlines", "two\n\tlines"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize("camera", [CLEARS, TURNED])
def test_tables_sentences_and_lines_of_the_log_are_safe_to_look_at(
    camera: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "video_id": "a-1",
        "external_id": camera,
        "camera": camera,
        "state": "failed",
        "progress": 0.0,
        "updated_at": None,
        "failure_class": "internal",
        "message": f"{camera} is broken",
        "recorded_at": None,
        "recorded_at_source": None,
    }
    out = io.StringIO()
    monkeypatch.setitem(vars(terminal), "err", terminal.safe_console(file=out))
    terminal.err.print(f"{camera} is broken", markup=False)
    terminal.print_table(status_table([row]))
    record = logging.LogRecord("capstone.intake", logging.INFO, __file__, 1, f"{camera} came", None, None)
    written = [out.getvalue(), capsys.readouterr().out, TerminalFormatter().format(record)]
    for text in written:
        assert visible(camera) in text
        assert visible(text) == text


def test_markdown_shows_what_a_name_says() -> None:
    name = "a|b ![x](https://attacker.example/p.png) <img src=x> $\\foo$ _x_\nnext"
    assert markdown(name) == (
        r"a\|b \!\[x\]\(https\://attacker.example/p.png\) \<img src=x\> \$\\foo\$ \_x\_ next"
    )
