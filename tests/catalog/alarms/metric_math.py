"""CloudWatch's metric math, as much of it as the alarms use, over arrays in which NaN is a missing value.

Rules and examples are those of the user guide, "Using metric math with CloudWatch metrics"
(docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
# A number that an expression spells out; the guide calls it a scalar.
Scalar = float
Operand = Values | Scalar

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<word>[A-Za-z]\w*)|(?P<sign>&&|\|\||[<>=!]=|[-+*/^<>()\[\],]))"
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_ACROSS: Mapping[str, Callable[[Values], Values]] = {
    "SUM": lambda stacked: np.nansum(stacked, axis=0),
    "AVG": lambda stacked: np.nansum(stacked, axis=0) / len(stacked),  # "missing values are treated as 0"
    "MAX": lambda stacked: np.nanmax(np.where(np.isnan(stacked), -np.inf, stacked), axis=0),
    "MIN": lambda stacked: np.nanmin(np.where(np.isnan(stacked), np.inf, stacked), axis=0),
}


class NotUnderstood(ValueError):
    """An expression with something that this does not know, or that has no place in an alarm."""


@dataclass(frozen=True)
class MetricMath:
    """Evaluates expressions over series of the same shape, whose last axis is one evaluation's range.

    Attributes:
        fills_empty: whether FILL makes values of a series that has none in the whole range. The guide does
            not say; alarms must hold either way.
    """

    fills_empty: bool = True

    def evaluate(self, expression: str, series: Mapping[str, Values]) -> Values:
        """The expression's values, one for each of the series'.

        Raises:
            NotUnderstood: see there.
        """
        parsing = _Parsing(_tokens(expression), series, self.fills_empty)
        result = parsing.disjunction()
        if parsing.left:
            raise NotUnderstood(f"{expression!r}: did not expect {parsing.left[0]!r}")
        if isinstance(result, float):
            raise NotUnderstood(f"{expression!r}: a number; an alarm watches a series")
        return result


def _tokens(expression: str) -> list[str]:
    found, position = [], 0
    while position < len(expression.rstrip()):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise NotUnderstood(f"{expression!r}: did not expect {expression[position:]!r}")
        found.append(match[0].strip())
        position = match.end()
    return found


class _Parsing:
    """Recursive descent, one method a level of precedence."""

    def __init__(self, tokens: list[str], series: Mapping[str, Values], fills_empty: bool) -> None:
        self.left = tokens
        self._series = series
        self._fills_empty = fills_empty

    def disjunction(self) -> Operand:
        value = self._conjunction()
        while self._next("OR", "||"):
            value = _logical(np.logical_or, value, self._conjunction())
        return value

    def _conjunction(self) -> Operand:
        value = self._comparison()
        while self._next("AND", "&&"):
            value = _logical(np.logical_and, value, self._comparison())
        return value

    def _comparison(self) -> Operand:
        value = self._sum()
        while sign := self._next(*_COMPARISONS):
            value = _pairwise(_COMPARISONS[sign], value, self._sum())
        return value

    def _sum(self) -> Operand:
        value = self._product()
        while sign := self._next("+", "-"):
            value = _pairwise(np.add if sign == "+" else np.subtract, value, self._product())
        return value

    def _product(self) -> Operand:
        value = self._power()
        while sign := self._next("*", "/"):
            value = _pairwise(np.multiply if sign == "*" else _divide, value, self._power())
        return value

    def _power(self) -> Operand:
        value = self._single()
        return _pairwise(np.power, value, self._power()) if self._next("^") else value

    def _single(self) -> Operand:
        if self._next("-"):
            return _pairwise(np.subtract, 0.0, self._single())
        if self._next("("):
            value = self.disjunction()
            self._expect(")")
            return value
        token = self.left.pop(0) if self.left else ""
        if re.fullmatch(r"\d+(\.\d+)?", token):
            return float(token)
        if self._next("("):
            return self._function(token)
        if token not in self._series:
            raise NotUnderstood(f"{token!r} is no series here: expected one of {', '.join(self._series)}")
        return self._series[token]

    def _function(self, name: str) -> Operand:
        if name in _ACROSS:
            if not self._next("["):
                # "Whenever an alarm evaluates, CloudWatch attempts to retrieve a higher number of data
                # points ... This function acts differently when extra data is requested."
                raise NotUnderstood(f"{name} of one series has no place in an alarm; give it a list")
            listed = self._arguments("]")
            self._expect(")")
            shape = np.broadcast_shapes(*(np.shape(each) for each in listed))
            stacked = np.stack([np.broadcast_to(each, shape) for each in listed])
            return np.where(np.isnan(stacked).all(axis=0), np.nan, _ACROSS[name](stacked))
        arguments = self._arguments(")")
        if name == "FILL" and len(arguments) == 2:
            return self._filled(*arguments)
        if name == "IF" and len(arguments) in (2, 3):
            return _chosen(*arguments)
        raise NotUnderstood(f"{name} with {len(arguments)} arguments")

    def _filled(self, values: Operand, filler: Operand) -> Operand:
        if isinstance(values, float):
            raise NotUnderstood("FILL of a number")
        missing = np.isnan(values)
        if not self._fills_empty:
            missing &= ~missing.all(axis=-1, keepdims=True)
        return np.where(missing, filler, values)

    def _arguments(self, end: str) -> list[Operand]:
        found = [self.disjunction()]
        while self._next(","):
            found.append(self.disjunction())
        self._expect(end)
        return found

    def _next(self, *tokens: str) -> str | None:
        return self.left.pop(0) if self.left and self.left[0] in tokens else None

    def _expect(self, token: str) -> None:
        if not self._next(token):
            raise NotUnderstood(f"expected {token!r}, found {self.left[:1]}")


def _pairwise(operation: Callable[[Any, Any], Any], one: Operand, other: Operand) -> Operand:
    """Where one of two series has a value, a missing one of the other counts as 0."""
    missing = np.isnan(one) & np.isnan(other)
    if isinstance(one, float) != isinstance(other, float):
        # A number is there at every time: it does not make a value where the series has none.
        missing = np.isnan(one) | np.isnan(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = operation(np.nan_to_num(one), np.nan_to_num(other)).astype(float)
    return np.where(missing, np.nan, result) if np.ndim(result) else float(result)


def _divide(one: Any, other: Any) -> Any:
    """What would be divided by zero is dropped."""
    return np.where(np.equal(other, 0), np.nan, np.divide(one, other))


def _logical(operation: Callable[[Any, Any], Any], one: Operand, other: Operand) -> Operand:
    return _pairwise(lambda a, b: operation(a != 0, b != 0), one, other)


def _chosen(condition: Operand, then: Operand, otherwise: Operand = np.nan) -> Operand:
    """IF: true is any number but 0; a true condition makes 0 of a missing value, a false one drops it."""
    if isinstance(condition, float):
        raise NotUnderstood("IF of a number: expected a condition over a series")
    chosen = np.where(condition != 0, np.nan_to_num(then), otherwise)
    return np.where(np.isnan(condition), np.nan, chosen)
