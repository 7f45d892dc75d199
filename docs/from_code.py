"""What docs/reference.md and docs/testing.md are rendered from: commands, Dagster's definitions, examples."""

import warnings
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from typer.main import get_command

from capstone_dagster.cli import app

EXAMPLES = Path(__file__).resolve().parent / "examples"
_KINDS = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}
# Described once, above the list.
_EVERYWHERE = {"help", "state", "install_completion", "show_completion"}


def commands() -> str:
    """Every command: what it does, its arguments and options."""
    return "\n\n".join(_command(words, command) for words, command in each_command())


def each_command() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words it is called with, in the order of `--help`."""

    def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                yield from below(f"{words} {name}", each)
        else:
            yield words, command

    return below("capstone", get_command(app))


def command_list() -> str:
    """Every command by its name, as `--help` puts them together."""
    panels: dict[str, list[str]] = {}
    root = get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        names = [f"{name} {each}" for each in command.commands] if hasattr(command, "commands") else [name]
        anchors = [(each, "capstone-" + each.replace(" ", "-")) for each in names]
        links = [f"[`{each}`](docs/reference.md#{anchor})" for each, anchor in anchors]
        panels.setdefault(str(command.rich_help_panel), []).extend(links)
    rows = ["| for | `capstone …` |", "|---|---|"]
    return "\n".join([*rows, *(f"| {panel} | {', '.join(links)} |" for panel, links in panels.items())])


def assets() -> str:
    """Every asset: what it is made of, what it is, and its checks."""
    definitions = _definitions()
    parts = []
    for key in sorted(definitions.resolve_asset_graph().get_all_asset_keys()):
        spec = definitions.resolve_assets_def(key).specs_by_key[key]
        facts = [
            f"from {_names(dep.asset_key.to_user_string() for dep in spec.deps)}" if spec.deps else "",
            f"group {spec.group_name}" if spec.group_name else "",
            f"kinds {_names(spec.kinds)}" if spec.kinds else "",
            f"asked first: {_names(spec.owners)}" if spec.owners else "",
        ]
        summary = "; ".join(fact for fact in facts if fact)
        parts.append(f"### Asset {key.to_user_string()}\n\n{spec.description or ''}\n\n*{summary}*")
    return "\n\n".join(parts)


def automation() -> str:
    """Jobs, schedules and sensors, and what each is for."""
    definitions = _definitions()
    rows = ["| | name | when | what |", "|---|---|---|---|"]
    for job in sorted(definitions.jobs or (), key=lambda job: job.name):
        rows.append(f"| job | `{job.name}` | when asked | {_first(_described(job, definitions))} |")
    for schedule in definitions.schedules or ():
        when = f"`{schedule.cron_schedule}` {schedule.execution_timezone or 'UTC'}"
        rows.append(f"| schedule | `{schedule.name}` | {when} | job `{schedule.job_name}` |")
    for sensor in sorted(definitions.sensors or (), key=lambda sensor: sensor.name):
        seconds = getattr(sensor, "minimum_interval_seconds", None)
        when = f"every {seconds} s" if seconds else "as Dagster ticks"
        rows.append(f"| sensor | `{sensor.name}` | {when} | {_first(sensor.description)} |")
    return "\n".join(rows)


def example(name: str) -> str:
    """A file of docs/examples/ as a block of code under its name."""
    return f"```python\n# {name}\n{(EXAMPLES / name).read_text().rstrip()}\n```"


def _definitions() -> dg.Definitions:
    # Only here: it reads the environment and sets logging up, which no other page needs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dagster's, of what is beta
        from capstone_dagster.definitions import defs

        return defs


def _described(job: Any, definitions: dg.Definitions) -> str | None:
    # What is defined as a selection of assets has its description before it is resolved, too.
    return job.description or definitions.resolve_job_def(job.name).description


def _command(words: str, command: Any) -> str:
    shown = [each for each in command.params if each.name not in _EVERYWHERE]
    takes = [_argument(each) for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option" and not each.hidden]
    usage = " ".join([words, *(["[OPTIONS]"] if options else []), *takes])
    parts = [f"### {words}", f"```text\n{usage}\n```", _joined(command.help or "")]
    if options:
        rows = ["| option | default | meaning |", "|---|---|---|"]
        rows += [f"| {_option(each)} | {_default(each)} | {_cell(each.help)} |" for each in options]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _argument(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("{}[].").upper()
    several = "..." if argument.nargs == -1 else ""
    return f"{name}{several}" if argument.required else f"[{name}{several}]"


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {_value(option)}"


def _value(option: Any) -> str:
    kind = option.type_descriptor.annotation
    if get_origin(kind) is list:
        [kind] = get_args(kind)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices = tuple(each.value for each in kind)
    if choices:
        return " \\| ".join(map(str, choices))
    return str(option.metavar or _KINDS[kind])


def _default(option: Any) -> str:
    default = option.show_default if isinstance(option.show_default, str) else option.default
    return "" if default is None or default is False or callable(default) else f"`{default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _joined(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _first(text: str | None) -> str:
    return _cell((text or "").split("\n\n")[0])


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
