"""The `capstone` command in this process, as a person types it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Capstone = Callable[..., Outcome]


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_stack: Path
) -> Capstone:
    """What runs a command line, away from any stack of the person who runs the tests."""
    from capstone_dagster import cli

    def run(*arguments: str | Path) -> Outcome:
        words = [str(argument) for argument in arguments]
        if words[0] not in ("analyze", "demo", "dev") and not {"--help", "-h"} & set(words):
            words += ["--state", str(no_stack)]
        monkeypatch.setattr("sys.argv", ["capstone", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run
