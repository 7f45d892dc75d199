"""Which causes recur among failures: their sentences clustered by `drain3`, per failure class. Pure.

Drain groups sentences of equal length that differ in few words. What certainly differs between two failures
of one cause, such as names, numbers and addresses, is masked first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from capstone_dagster.reports.records import Failure, Period
from capstone_dagster.reports.shown import Report, Table, counted, percent
from capstone_dagster.wall_clock import wall_clock

_MASKS = (
    (re.compile(r"\w+://\S+"), "<address>"),
    (re.compile(r"'[^']*'|\"[^\"]*\""), "<name>"),
    (re.compile(r"\S*/\S+"), "<path>"),
    (re.compile(r"\b[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b"), "<id>"),
    (re.compile(r"\d+(?:\.\d+)?"), "<number>"),
)
# Of two sentences, the share of words that agree. Drain's own default of 0.4 joins sentences of ours with
# different causes, which share their grammar.
_SIMILARITY = 0.7
# As many causes as explain this share are named in the first sentence.
_EXPLAINED = 0.9


@dataclass(frozen=True, slots=True)
class RecurringCause:
    """Failures with one cause.

    Attributes:
        template: the words that all its sentences share.
        share: of all failures.
        first, last: when the first and the last one happened, seconds since 1970.
        example: the latest sentence, and the run that it is of.
    """

    failure: str
    template: str
    count: int
    share: float
    first: float
    last: float
    example: str
    run_id: str


def recurring(failures: Sequence[Failure]) -> list[RecurringCause]:
    """The causes, most frequent first."""
    from drain3.drain import Drain, LogCluster

    miners: dict[str, Drain] = {}
    members: dict[tuple[str, int], tuple[LogCluster, list[Failure]]] = {}
    for each in failures:
        miner = miners.setdefault(each.failure, Drain(sim_th=_SIMILARITY))
        cluster, _ = miner.add_log_message(_masked(each.sentence))
        members.setdefault((each.failure, cluster.cluster_id), (cluster, []))[1].append(each)
    found = []
    for (failure, _), (cluster, those) in members.items():
        last = max(those, key=lambda each: each.at)
        found.append(
            RecurringCause(
                failure,
                cluster.get_template(),
                len(those),
                len(those) / len(failures),
                min(each.at for each in those),
                last.at,
                last.sentence,
                last.run_id,
            )
        )
    return sorted(found, key=lambda cause: (-cause.count, cause.failure, cause.template))


def causes_report(failures: Sequence[Failure], period: Period, *, runbook: str, most: int) -> Report:
    """The report on a period's failures.

    Args:
        runbook: its address, for links to the classes' pages.
        most: how many failures were looked at, at most.
    """
    title = f"Causes of failures since {wall_clock(period.since)}"
    if not failures:
        sentence = (
            "No run failed in this period."
            if period.days
            else "The period is empty: it begins at its end or later."
        )
        return Report(title, [sentence], figures={"failures": 0, "causes": []})
    causes = recurring(failures)
    named, share = 0, 0.0
    while share < _EXPLAINED and named < len(causes):
        share += causes[named].share
        named += 1
    verb = "explains" if named == 1 else "explain"
    rows = [
        (
            f"{cause.count:,}",
            percent(cause.share),
            cause.failure,
            wall_clock(cause.first),
            wall_clock(cause.last),
            f"{runbook}#{cause.failure}",
            cause.example,
        )
        for cause in causes
    ]
    heading = ("failures", "share", "class", "first seen", "last seen", "runbook", "latest example")
    return Report(
        title,
        [f"{counted(named, 'cause')} {verb} {share * 100:.0f} % of {counted(len(failures), 'failure')}."],
        [Table("Causes", heading, rows, frozenset({"failures", "share"}))],
        {"failures": len(failures), "causes": [asdict(cause) for cause in causes]},
        [f"Only the latest {most:,} failures were looked at."] if len(failures) == most else [],
    )


def _masked(sentence: str) -> str:
    for pattern, word in _MASKS:
        sentence = pattern.sub(word, sentence)
    return sentence
