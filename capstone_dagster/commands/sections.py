"""How `--help` lists commands: under their panels, without rich, which takes longer to load than all else."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_WHOLE_SENTENCE = 200


class Sections(TyperGroup):
    """A group of commands whose help needs no rich."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """See `TyperGroup`."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(_WHOLE_SENTENCE)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
