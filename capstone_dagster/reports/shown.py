"""One shape for every report, and its three renderings: text for a terminal, Markdown, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from capstone_dagster.outside_text import markdown, visible

# Stands where a figure does not exist: there were no records to compute it from.
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A part of a report.

    Attributes:
        columns: the headings. Long texts belong into the last column, which no padding follows.
        right: the columns whose cells are aligned to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """What a command shows.

    Attributes:
        sentences: what the reader should know first.
        figures: the same as numbers, for programs.
        notes: what limits the figures: missing records, clocks that were set back, what was read.
    """

    title: str
    sentences: Sequence[str]
    tables: Sequence[Table] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def as_text(report: Report) -> str:
    """For a terminal; control characters of texts from outside are made visible."""
    lines = [report.title, "", *map(visible, report.sentences)]
    for table in report.tables:
        cells = [table.columns, *(tuple(map(visible, row)) for row in table.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
        lines += ["", table.title]
        for row in cells:
            padded = (
                cell.rjust(width) if name in table.right else cell.ljust(width)
                for name, cell, width in zip(table.columns, row, widths, strict=True)
            )
            lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join([*lines, *([""] if report.notes else []), *map(visible, report.notes)])


def as_markdown(report: Report) -> str:
    """For a document or Dagster's pages."""
    lines = [f"# {report.title}", "", *(f"{markdown(each)}\n" for each in report.sentences)]
    for table in report.tables:
        rule = ["---:" if name in table.right else "---" for name in table.columns]
        rows = [table.columns, rule, *(tuple(map(markdown, row)) for row in table.rows)]
        lines += [f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    return "\n".join([*lines, *(f"- {markdown(each)}" for each in report.notes)]).rstrip() + "\n"


def duration(seconds: float | None) -> str:
    """A length of time in its natural unit.

    >>> duration(0.25), duration(90), duration(7200), duration(None)
    ('0.25 s', '1.5 min', '2.0 h', '–')
    """
    if seconds is None:
        return ABSENT
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def percent(share: float | None) -> str:
    """A share of 1, with as many digits as its distance from 1 needs.

    >>> percent(0.5), percent(0.9995), percent(1.0), percent(None)
    ('50.0 %', '99.95 %', '100 %', '–')
    """
    if share is None:
        return ABSENT
    if share == 1:
        return "100 %"
    return f"{100 * share:.2f} %" if share > 0.99 else f"{100 * share:.1f} %"


def dollars(amount: float | None) -> str:
    """An amount of money, small ones with the digits that matter.

    >>> dollars(340), dollars(0.00123), dollars(0)
    ('340.00 USD', '0.0012 USD', '0 USD')
    """
    if amount is None:
        return ABSENT
    if not amount:
        return "0 USD"
    return f"{amount:,.2f} USD" if amount >= 0.1 else f"{amount:.{1 - math.floor(math.log10(amount))}f} USD"


def counted(number: int, one: str, several: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "failure"), counted(1200, "failure")
    ('1 failure', '1,200 failures')
    """
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which this share of them lies, interpolated; None without any.

    >>> percentile([1, 2, 3, 4, 5], 0.5), percentile([0, 10], 0.95), percentile([], 0.5)
    (3.0, 9.5, None)
    """
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
