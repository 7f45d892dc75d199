"""The language of CloudWatch Logs Insights, as far as the saved queries use it: a parser and an evaluator.

Written after AWS's reference ("CloudWatch Logs Insights language query syntax"); what is not spoken here is
refused, so that a query cannot pass by not being understood. No emulator evaluates these queries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


class NotInsights(ValueError):
    """The text is no query of the language as spoken here."""


# --- what a query is ---


@dataclass(frozen=True)
class Field:
    name: str


@dataclass(frozen=True)
class Value:
    value: Any


@dataclass(frozen=True)
class Call:
    """A function, an operator, `bin` or an aggregate; an operator's name is its sign."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Field | Value | Call


@dataclass(frozen=True)
class Named:
    expression: Expression
    name: str


@dataclass(frozen=True)
class Command:
    """`what` is fields, display, filter, stats, sort, limit or parse.

    Attributes:
        items: fields', display's, filter's (one) and stats' expressions; sort's keys.
        by: stats' groups.
        number: limit's.
        descending: for each of sort's keys.
        pattern, names: parse's.
    """

    what: str
    items: tuple[Named, ...] = ()
    by: tuple[Named, ...] = ()
    number: int = 0
    descending: tuple[bool, ...] = ()
    pattern: re.Pattern[str] | None = None
    names: tuple[str, ...] = ()


# --- parsing ---

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<comment>\#[^\n]*)
      | (?P<period>\d+(?:ms|s|m|h|d|w)\b)
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<regex>/(?:[^/\\\n]|\\.)+/)
      | (?P<field>`[^`]+`|@?[A-Za-z_][\w.]*)
      | (?P<sign><=|>=|!=|=~|[=<>+\-*/^%(),\[\]|])
    )""",
    re.VERBOSE,
)
_FUNCTIONS = {"strcontains": 2, "ispresent": 1, "coalesce": None, "abs": 1, "floor": 1, "ceil": 1, "bin": 1}
_AGGREGATES = {
    "count": 1, "count_distinct": 1, "sum": 1, "avg": 1, "min": 1, "max": 1, "pct": 2, "latest": 1,
    "earliest": 1,
}  # fmt: skip
_PERIODS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_WORDS = {"and", "or", "not", "in", "like", "as", "by", "asc", "desc"}


def parse(text: str) -> tuple[Command, ...]:
    """The commands of a query.

    Raises:
        NotInsights: saying where, and what was expected there.
    """
    return _Parser(text).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def query(self) -> tuple[Command, ...]:
        commands = [self._command()]
        while self._take("|"):
            commands.append(self._command())
        self._expect_end()
        return tuple(commands)

    def _command(self) -> Command:
        what = self._word("a command")
        if what in ("fields", "display"):
            return Command(what, self._list(self._named))
        if what == "filter":
            return Command(what, (Named(self._expression(), ""),))
        if what == "stats":
            items = self._list(self._named)
            return Command(what, items, self._list(self._named) if self._take("by") else ())
        if what == "sort":
            keys = self._list(self._sort_key)
            return Command(what, tuple(key for key, _ in keys), descending=tuple(down for _, down in keys))
        if what == "limit":
            kind, number = self._next()
            if kind != "number" or not number.isdigit():
                raise self._wrong("a whole number")
            return Command(what, number=int(number))
        if what == "parse":
            return self._parse_command()
        raise NotInsights(f"{what!r} is no command that is known here")

    def _parse_command(self) -> Command:
        source = self._field()
        kind, pattern = self._next()
        if kind == "regex":
            compiled = re.compile(re.sub(r"\(\?<(?=\w)", "(?P<", pattern[1:-1]))
            return Command("parse", (Named(source, ""),), pattern=compiled, names=tuple(compiled.groupindex))
        if kind != "text":
            raise self._wrong('a pattern in "…" or /…/')
        if not self._take("as"):
            raise self._wrong("as")
        names = tuple(field.name for field in self._list(self._field))
        parts = pattern[1:-1].split("*")
        if len(parts) - 1 != len(names):
            raise NotInsights(f"{pattern} has {len(parts) - 1} wildcards for {len(names)} names")
        compiled = re.compile(
            "(.*?)".join(re.escape(part) for part in parts) + ("$" if not parts[-1] else "")
        )
        return Command("parse", (Named(source, ""),), pattern=compiled, names=names)

    def _sort_key(self) -> tuple[Named, bool]:
        expression = self._expression()
        # What is not said is ascending.
        descending = not self._take("asc") and self._take("desc")
        return Named(expression, ""), descending

    def _named(self) -> Named:
        start = self._at
        expression = self._expression()
        text = "".join(token for _, token in self._tokens[start : self._at])
        return Named(expression, self._field().name if self._take("as") else text)

    def _expression(self) -> Expression:
        left = self._conjunction()
        while self._take("or"):
            left = Call("or", (left, self._conjunction()))
        return left

    def _conjunction(self) -> Expression:
        left = self._negation()
        while self._take("and"):
            left = Call("and", (left, self._negation()))
        return left

    def _negation(self) -> Expression:
        return Call("not", (self._negation(),)) if self._take("not") else self._comparison()

    def _comparison(self) -> Expression:
        left = self._sum()
        for sign in ("=", "!=", "<=", ">=", "<", ">"):
            if self._take(sign):
                return Call(sign, (left, self._sum()))
        if self._take("in"):
            self._expect("[")
            values = self._list(self._sum)
            self._expect("]")
            return Call("in", (left, *values))
        if self._take("like") or self._take("=~"):
            return Call("like", (left, self._sum()))
        return left

    def _sum(self) -> Expression:
        left = self._product()
        while sign := self._take_one("+", "-"):
            left = Call(sign, (left, self._product()))
        return left

    def _product(self) -> Expression:
        left = self._atom()
        while sign := self._take_one("*", "/", "%"):
            left = Call(sign, (left, self._atom()))
        return left

    def _atom(self) -> Expression:
        if self._take("("):
            inside = self._expression()
            self._expect(")")
            return inside
        kind, token = self._next()
        if kind == "number":
            return Value(float(token))
        if kind == "text":
            return Value(re.sub(r"\\(.)", r"\1", token[1:-1]))
        if kind == "regex":
            return Value(re.compile(re.sub(r"\(\?<(?=\w)", "(?P<", token[1:-1])))
        if kind == "period":
            number, unit = re.fullmatch(r"(\d+)(\w+)", token).groups()  # type: ignore[union-attr]
            if unit not in _PERIODS_S:
                raise NotInsights(f"{token} is no period that is known here")
            return Value(int(number) * _PERIODS_S[unit])
        if kind != "field" or token in _WORDS:
            raise NotInsights(f"expected a field or a value, found {token!r}")
        if not self._take("("):
            return Field(token.strip("`"))
        return self._call(token)

    def _call(self, name: str) -> Call:
        if name not in _FUNCTIONS and name not in _AGGREGATES:
            raise NotInsights(f"{name!r} is no function that is known here")
        if name == "count" and self._take("*"):
            arguments: tuple[Expression, ...] = (Value("*"),)
        else:
            arguments = self._list(self._expression)
        self._expect(")")
        wanted = _FUNCTIONS.get(name, _AGGREGATES.get(name))
        if wanted is not None and len(arguments) != wanted:
            raise NotInsights(f"{name} takes {wanted} arguments, found {len(arguments)}")
        return Call(name, arguments)

    def _list(self, one: Callable[[], Any]) -> tuple[Any, ...]:
        found = [one()]
        while self._take(","):
            found.append(one())
        return tuple(found)

    def _field(self) -> Field:
        return Field(self._word("a field").strip("`"))

    def _word(self, expected: str) -> str:
        kind, token = self._next()
        if kind != "field":
            raise NotInsights(f"expected {expected}, found {token!r}")
        return token

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise NotInsights("the query ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, token: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at][1] == token:
            self._at += 1
            return True
        return False

    def _take_one(self, *tokens: str) -> str | None:
        return next((token for token in tokens if self._take(token)), None)

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self._wrong(repr(token))

    def _expect_end(self) -> None:
        if self._at < len(self._tokens):
            raise NotInsights(f"expected the end or |, found {self._tokens[self._at][1]!r}")

    def _wrong(self, expected: str) -> NotInsights:
        found = self._tokens[self._at][1] if self._at < len(self._tokens) else "the end"
        return NotInsights(f"expected {expected}, found {found}")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotInsights(f"cannot read {text[at : at + 20]!r}")
        at = match.end()
        assert match.lastgroup is not None
        if match.lastgroup != "comment":
            yield match.lastgroup, match.group(match.lastgroup)


# --- what a query reads ---


def fields_read(commands: Sequence[Command]) -> set[str]:
    """The fields of the log lines that a query reads, those that it names itself left out.

    Raises:
        NotInsights: a field is read that an earlier `stats` has done away with.
    """
    read: set[str] = set()
    own: set[str] = set()
    gone = False  # after stats, only what it named is there
    for command in commands:
        for item in (*command.items, *command.by):
            for name in _fields(item.expression):
                if name in own:
                    continue
                if gone:
                    raise NotInsights(f"{name!r} is not among what stats left: {sorted(own)}")
                read.add(name)
            if command.what == "stats":
                own.add(item.name)  # one may be used by those that follow it
        if command.what == "stats":
            own = {item.name for item in (*command.items, *command.by)}
            gone = True
        elif command.what == "fields":
            own |= {item.name for item in command.items if item.expression != Field(item.name)}
        own |= set(command.names)
    return read


def _fields(expression: Expression) -> Iterator[str]:
    if isinstance(expression, Field):
        yield expression.name
    elif isinstance(expression, Call):
        if expression.name == "bin":
            yield "@timestamp"
        for argument in expression.arguments:
            yield from _fields(argument)


# --- evaluating ---


def run(text: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """What a query answers over rows, each with `@timestamp` in milliseconds beside its line's own fields."""
    found = [dict(row) for row in rows]
    shown: list[str] | None = None
    for command in parse(text):
        if command.what == "filter":
            found = [row for row in found if _value(command.items[0].expression, row)]
        elif command.what in ("fields", "display"):
            for row in found:
                row.update({item.name: _value(item.expression, row) for item in command.items})
            names = [item.name for item in command.items]
            shown = names if shown is None or command.what == "display" else [*shown, *names]
        elif command.what == "stats":
            found, shown = _stats(command, found), None
        elif command.what == "sort":
            for key, down in reversed(list(zip(command.items, command.descending, strict=True))):
                found.sort(key=lambda row, key=key: _order(_value(key.expression, row)), reverse=down)  # type: ignore[misc]
        elif command.what == "limit":
            found = found[: command.number]
        elif command.what == "parse":
            assert command.pattern is not None
            for row in found:
                match = command.pattern.search(str(_value(command.items[0].expression, row) or ""))
                if match:
                    row.update(zip(command.names, match.groups(), strict=True))
    return found if shown is None else [{name: row.get(name) for name in shown} for row in found]


def _stats(command: Command, rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_value(item.expression, row) for item in command.by), []).append(row)
    answer = []
    for key, members in groups.items():
        result: Row = {item.name: value for item, value in zip(command.by, key, strict=True)}
        for item in command.items:
            result[item.name] = _aggregate(item.expression, members, result)
        answer.append(result)
    return answer


def _aggregate(expression: Expression, rows: Sequence[Row], known: Row) -> Any:
    if isinstance(expression, Field):
        return known.get(expression.name)
    if isinstance(expression, Value):
        return expression.value
    if expression.name not in _AGGREGATES:
        return _apply(expression.name, [_aggregate(each, rows, known) for each in expression.arguments])
    if expression.arguments[0] == Value("*"):
        return len(rows)
    pairs = [(row["@timestamp"], _value(expression.arguments[0], row)) for row in rows]
    values = [value for _, value in pairs if value is not None]
    match expression.name:
        case "count":
            return len(values)
        case "count_distinct":
            return len(set(values))
        case "latest" | "earliest":
            pairs.sort(key=lambda pair: pair[0], reverse=expression.name == "latest")
            return next((value for _, value in pairs if value is not None), None)
    numbers = [float(value) for value in values]
    if not numbers:
        return None
    match expression.name:
        case "sum":
            return sum(numbers)
        case "avg":
            return sum(numbers) / len(numbers)
        case "min":
            return min(numbers)
        case "max":
            return max(numbers)
    share = expression.arguments[1]
    assert isinstance(share, Value)
    return sorted(numbers)[max(0, math.ceil(share.value / 100 * len(numbers)) - 1)]


def _value(expression: Expression, row: Row) -> Any:
    if isinstance(expression, Field):
        return row.get(expression.name)
    if isinstance(expression, Value):
        return expression.value
    if expression.name in _AGGREGATES:
        raise NotInsights(f"{expression.name} stands outside stats")
    if expression.name == "bin":
        period = expression.arguments[0]
        assert isinstance(period, Value)
        return row["@timestamp"] // (period.value * 1000) * period.value * 1000
    return _apply(expression.name, [_value(each, row) for each in expression.arguments])


def _apply(name: str, values: Sequence[Any]) -> Any:
    match name:
        case "ispresent":
            return values[0] is not None
        case "coalesce":
            return next((value for value in values if value is not None), None)
        case "not":
            return not values[0]
        case "and":
            return bool(values[0] and values[1])
        case "or":
            return bool(values[0] or values[1])
        case "in":
            return values[0] in values[1:]
        case "like":
            if values[0] is None:
                return False
            pattern = values[1] if isinstance(values[1], re.Pattern) else re.compile(re.escape(values[1]))
            return pattern.search(str(values[0])) is not None
    # What follows says nothing of what is not there.
    if any(value is None for value in values):
        return None
    match name:
        case "strcontains":
            return int(values[1] in str(values[0]))
        case "abs":
            return abs(values[0])
        case "floor":
            return math.floor(values[0])
        case "ceil":
            return math.ceil(values[0])
        case "=":
            return values[0] == values[1]
        case "!=":
            return values[0] != values[1]
    left, right = float(values[0]), float(values[1])
    match name:
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case ">=":
            return left >= right
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right if right else None
        case "%":
            return left % right if right else None
    raise NotInsights(f"{name!r} cannot be evaluated")


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, text by letters, what is missing first."""
    if value is None:
        return (0, 0)
    return (1, value) if isinstance(value, (int, float)) else (2, str(value))
