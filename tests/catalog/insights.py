"""The language of CloudWatch Logs Insights, as far as the saved queries use it: no emulator evaluates it.

Written after AWS's reference ("CloudWatch Logs Insights language query syntax"). Its expressions are
Python's, apart from `=`, `count(*)` and periods such as `5m`. What is not known here is refused, so that a
query cannot pass by not being understood.
"""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Row = dict[str, Any]
COMMANDS = {"display", "filter", "stats", "sort", "limit"}
AGGREGATES: Mapping[str, Callable[..., Any]] = {
    "count": len,
    "count_distinct": lambda values: len(set(values)),
    "sum": sum,
    "avg": fmean,
    "max": max,
    "pct": lambda values, share: sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)],
    "latest": lambda values: values[-1],
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "ispresent": lambda value: value is not None,
    "strcontains": lambda text, part: int(part in text),
    "bin": int,  # see `_value`, which knows the row
}
_PERIODS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")')


class NotInsights(ValueError):
    """The text is no query of the language as spoken here."""


@dataclass(frozen=True)
class Expression:
    """An expression, the name of its column, and the fields that it reads."""

    name: str
    tree: ast.expr
    fields: frozenset[str]


@dataclass(frozen=True)
class Command:
    """One command: `by` are the groups of `stats`; `number` is that of `limit`."""

    what: str
    items: tuple[Expression, ...] = ()
    by: tuple[Expression, ...] = ()
    descending: bool = False
    number: int = 0


# --- reading ---


def parse(text: str) -> tuple[Command, ...]:
    """The commands of a query."""
    return tuple(_command(each.strip()) for each in _split(text, "|"))


def fields_read(commands: Sequence[Command]) -> set[str]:
    """The fields of log lines that a query reads; what `stats` leaves is not among them."""
    read: set[str] = set()
    left: set[str] | None = None
    for command in commands:
        for item in (*command.items, *command.by):
            if left is not None and (gone := item.fields - left):
                raise NotInsights(f"{sorted(gone)} is not among what stats left: {sorted(left)}")
            read |= set() if left is not None else item.fields
        if command.what == "stats":
            left = {item.name for item in (*command.items, *command.by)}
    return read


def _command(text: str) -> Command:
    what, _, rest = text.partition(" ")
    if what not in COMMANDS:
        raise NotInsights(f"{what!r} is no command that is known here")
    if what == "limit":
        if not rest.strip().isdigit():
            raise NotInsights(f"expected a whole number, found {rest!r}")
        return Command(what, number=int(rest))
    if what == "sort":
        key, _, order = rest.strip().rpartition(" ")
        if order not in ("asc", "desc"):
            raise NotInsights(f"expected asc or desc, found {order!r}")
        return Command(what, (_expression(key),), descending=order == "desc")
    items, *by = _split(rest, " by ")
    groups = tuple(map(_expression, _split(by[0], ","))) if by else ()
    return Command(what, tuple(map(_expression, _split(items, ","))), groups)


def _split(text: str, separator: str) -> list[str]:
    """Split outside of quotes and brackets."""
    parts, depth, quoted, start = [], 0, False, 0
    flat = " ".join(text.split())
    for at, letter in enumerate(flat):
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter in "([") - (letter in ")]")
        if not quoted and depth == 0 and flat.startswith(separator, at):
            parts.append(flat[start:at])
            start = at + len(separator)
    return [*parts, flat[start:]]


def _expression(text: str) -> Expression:
    text, _, name = text.strip().partition(" as ")
    plain = "".join(part if part.startswith('"') else _as_python(part) for part in _TEXT.split(text))
    try:
        tree = ast.parse(plain.strip(), mode="eval")
    except SyntaxError as error:
        raise NotInsights(f"{text!r} is no expression: {error.msg}") from error
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node for node in ast.walk(tree) if isinstance(node, ast.Name)}
    functions = {ast.unparse(each) for each in called}
    if unknown := functions - {*FUNCTIONS, *AGGREGATES}:
        raise NotInsights(f"{sorted(unknown)} is no function that is known here")
    fields = frozenset(node.id for node in names if node not in called)
    if "bin" in functions:
        fields |= {"@timestamp"}
    return Expression(name.strip() or text, tree.body, fields)


def _as_python(text: str) -> str:
    text = re.sub(r"(?<![!<>=])=(?!=)", "==", text.replace("(*)", "()"))
    return re.sub(r"\b(\d+)([smhd])\b", lambda found: str(int(found[1]) * _PERIODS_S[found[2]]), text)


# --- evaluating ---


def run(text: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """What a query answers over rows, each with `@timestamp` in milliseconds beside its line's own fields."""
    found: list[Row] = [dict(row) for row in rows]
    for command in parse(text):
        match command.what:
            case "filter":
                found = [row for row in found if _value(command.items[0].tree, row)]
            case "display":
                found = [{item.name: _value(item.tree, row) for item in command.items} for row in found]
            case "stats":
                found = _stats(command, found)
            case "sort":
                key = command.items[0].tree
                found.sort(key=lambda row, key=key: _order(_value(key, row)), reverse=command.descending)  # type: ignore[misc]
            case "limit":
                found = found[: command.number]
    return found


def _stats(command: Command, rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_value(item.tree, row) for item in command.by), []).append(row)
    answer = []
    for key, members in groups.items():
        result: Row = dict(zip((item.name for item in command.by), key, strict=True))
        for item in command.items:
            result[item.name] = _value(_Aggregated(members).visit(copy.deepcopy(item.tree)), {})
        answer.append(result)
    return answer


class _Aggregated(ast.NodeTransformer):
    """Puts the value over a group's rows in place of each aggregate."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func)
        if name not in AGGREGATES:
            return self.generic_visit(node)
        if name == "count" and not node.args:
            return ast.Constant(len(self._rows))
        column, *others = node.args
        rows = sorted(self._rows, key=lambda row: row["@timestamp"])
        values = [value for row in rows if (value := _value(column, row)) is not None]
        more = [_value(each, {}) for each in others]
        return ast.Constant(AGGREGATES[name](values, *more) if values else None)


def _value(tree: ast.expr, row: Row) -> Any:
    fields = {node.id: row.get(node.id) for node in ast.walk(tree) if isinstance(node, ast.Name)}
    functions = {
        **FUNCTIONS,
        "bin": lambda period_s: row["@timestamp"] // (period_s * 1000) * period_s * 1000,
    }
    code = compile(ast.fix_missing_locations(ast.Expression(tree)), "query", "eval")
    try:
        return eval(code, {"__builtins__": {}}, fields | functions)
    except TypeError:
        return None  # of what is not there nothing is said


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, text by letters, what is missing first."""
    if value is None:
        return (0, 0)
    return (1, value) if isinstance(value, (int, float)) else (2, str(value))
