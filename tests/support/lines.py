"""Log lines that a test lets the code write, kept in memory."""

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


class Lines:
    """In place of standard output: a stream for handlers, and an output for the sensor that forwards.

    Args:
        room: so many lines are taken, and no more.
    """

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.texts: list[str] = []

    def write(self, text: str) -> bool:
        if len(self.texts) >= self.room:
            return False
        self.texts += text.splitlines()
        return True

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fields(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.texts]


of_runs = Lines()
"""What the handler of `python_logs` writes."""


def python_logs() -> dict[str, Any]:
    """dagster.yaml's log handler, writing to `of_runs`; which begins empty."""
    of_runs.texts.clear()
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "dagster.yaml").read_text())["python_logs"]
    shipped["dagster_handler_config"]["handlers"]["lines"]["stream"] = f"ext://{__name__}.of_runs"
    return shipped
