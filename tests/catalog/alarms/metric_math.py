"""CloudWatch's metric math, as much of it as the alarms use, over arrays in which NaN is a missing value.

Rules and examples are those of the user guide, "Using metric math with CloudWatch metrics"
(docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html).
"""

from __future__ import annotations

import ast
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

_OPERATIONS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: lambda one, other: np.where(np.equal(other, 0), np.nan, np.divide(one, other)),
    ast.Pow: np.power,
    ast.And: lambda one, other: np.logical_and(one != 0, other != 0),
    ast.Or: lambda one, other: np.logical_or(one != 0, other != 0),
}
# How Python writes the same.
_PYTHON = {r"\bAND\b|&&": " and ", r"\bOR\b|\|\|": " or ", r"\^": "**"}
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
        text = expression
        for theirs, pythons in _PYTHON.items():
            text = re.sub(theirs, pythons, text)
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise NotUnderstood(f"{expression!r}: {error.msg}") from error
        result = _Evaluation(series, self.fills_empty).value(tree)
        if isinstance(result, float):
            raise NotUnderstood(f"{expression!r}: a number; an alarm watches a series")
        return result


@dataclass(frozen=True)
class _Evaluation:
    """Python reads the expression; what each node means is CloudWatch's."""

    series: Mapping[str, Values]
    fills_empty: bool

    def value(self, node: ast.expr) -> Operand:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name) if name in self.series:
                return self.series[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _pairwise(np.subtract, 0.0, self.value(operand))
            case (
                ast.BinOp(left=one, op=sign, right=other)
                | ast.Compare(left=one, ops=[sign], comparators=[other])
            ) if type(sign) in _OPERATIONS:
                return _pairwise(_OPERATIONS[type(sign)], self.value(one), self.value(other))
            case ast.BoolOp(op=sign, values=[first, *others]):
                value = self.value(first)
                for each in others:
                    value = _pairwise(_OPERATIONS[type(sign)], value, self.value(each))
                return value
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self._function(name, arguments)
        raise NotUnderstood(f"{ast.unparse(node)!r} has no place in an alarm")

    def _function(self, name: str, arguments: list[ast.expr]) -> Operand:
        match name, arguments:
            # "Whenever an alarm evaluates, CloudWatch attempts to retrieve a higher number of data points ...
            # This function acts differently when extra data is requested": of one series it is refused.
            case _, [ast.List(elts=listed)] if name in _ACROSS:
                stacked = np.stack(np.broadcast_arrays(*map(self.value, listed)))
                return np.where(np.isnan(stacked).all(axis=0), np.nan, _ACROSS[name](stacked))
            case "FILL", [values, filler]:
                return self._filled(self.value(values), self.value(filler))
            case "IF", [_, _] | [_, _, _]:
                return _chosen(*map(self.value, arguments))
        raise NotUnderstood(f"{name} with {len(arguments)} arguments")

    def _filled(self, values: Operand, filler: Operand) -> Operand:
        if isinstance(values, float):
            raise NotUnderstood("FILL of a number")
        missing = np.isnan(values)
        if not self.fills_empty:
            missing &= ~missing.all(axis=-1, keepdims=True)
        return np.where(missing, filler, values)


def _pairwise(operation: Callable[[Any, Any], Any], one: Operand, other: Operand) -> Operand:
    """Where one of two series has a value, a missing one of the other counts as 0."""
    missing = np.isnan(one) & np.isnan(other)
    if isinstance(one, float) != isinstance(other, float):
        # A number is there at every time: it does not make a value where the series has none.
        missing = np.isnan(one) | np.isnan(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = operation(np.nan_to_num(one), np.nan_to_num(other)).astype(float)
    return np.where(missing, np.nan, result) if np.ndim(result) else float(result)


def _chosen(condition: Operand, then: Operand, otherwise: Operand = np.nan) -> Operand:
    """IF: true is any number but 0; a true condition makes 0 of a missing value, a false one drops it."""
    if isinstance(condition, float):
        raise NotUnderstood("IF of a number: expected a condition over a series")
    chosen = np.where(condition != 0, np.nan_to_num(then), otherwise)
    return np.where(np.isnan(condition), np.nan, chosen)
