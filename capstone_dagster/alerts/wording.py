"""The text of a notice: a subject that fits SNS and a phone, a body to act upon, attributes to filter by."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from batch_gpu.links import job_url, log_url
from capstone_dagster.alerts.incidents import Incident, Kind
from capstone_dagster.alerts.troubles import CONDITIONS, Condition
from capstone_dagster.catalog.log_groups import VIDEO_ANALYSIS
from capstone_dagster.failures.classes import POLICIES, FailureClass, Policy
from capstone_dagster.topics import Message
from capstone_dagster.wall_clock import wall_clock

# SNS takes up to 100 characters of ASCII, no line break, as a subject.
MAX_SUBJECT = 100
_KIND_WORDS: Mapping[Kind, str] = {"failure": "FAILED", "update": "STILL FAILING", "recovery": "OVER"}
_MAX_SENTENCE = 240
_NAMED_VIDEOS = 5
# How much of the log around a failure a link shows.
_BEFORE_MS, _AFTER_MS = 10 * 60_000, 2 * 60_000


@dataclass(frozen=True, slots=True)
class Place:
    """What links and words depend on.

    Attributes:
        ui_url: Dagster's pages; None if they have no address that a reader could open.
        region: of AWS's consoles; None where there are none, as in a local stack.
        browse_url: the pages of `capstone browse`; None if they have no address.
    """

    environment: str
    ui_url: str | None
    runbook_url: str
    region: str | None
    browse_url: str | None = None


def compose(incident: Incident, kind: Kind, place: Place, *, given_up: int = 0) -> Message:
    """A notice of an incident.

    Args:
        given_up: notices that were dropped before this one, which reports them.
    """
    name = incident.failure or incident.page
    title = _page(incident.page).title
    subject = f"[{place.environment}] {_KIND_WORDS[kind]} {name}: {title}{_extent_in_brief(incident)}"
    attributes = {
        "kind": kind,
        "class": incident.failure or "none",
        "severity": "page" if incident.systemic else "ticket",
        "environment": place.environment,
        "incident": incident.id,
        "page": incident.page,
    }
    lines = _recovery(incident, title) if kind == "recovery" else _failure(incident, title, place)
    if given_up:
        lines.append(f"{given_up} notices before this one were dropped: there were too many at once.")
    lines.append(f"Runbook: {place.runbook_url}#{incident.page}")
    # SNS takes UTF-8; what is not printable could only come from a file's name or a library's message.
    body = "\n".join("".join(letter for letter in line if letter.isprintable()) for line in lines)
    digest = hashlib.sha256(f"{subject}\n{body}".encode()).hexdigest()
    return Message(digest, incident.id, body, attributes, _subject(subject))


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence, bounded."""
    text = " ".join(text.split())
    end = text.find(". ")
    sentence = text if end < 0 else text[: end + 1]
    return sentence if len(sentence) <= _MAX_SENTENCE else sentence[: _MAX_SENTENCE - 1] + "…"


def duration(seconds: float) -> str:
    """A span of time, rounded for reading."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"


def _failure(incident: Incident, title: str, place: Place) -> list[str]:
    lines = [f"{title}.", f"Cause: {first_sentence(incident.cause)}"]
    if incident.failure is not None:
        lines.append(f"Class: {incident.failure}")
    lines.append(f"Since: {wall_clock(incident.opened)}")
    if incident.relapse:
        lines.append("It had ended within the last hour, and is back.")
    lines += _extent(incident)
    example = incident.example
    if example is not None:
        video, external = example["video_id"], example["external_id"]
        if video is not None:
            lines.append(f"Video: {video}" + (f" (external id {external})" if external else ""))
        lines.append(f"Attempt: {example['attempt']}. {example['outlook']}")
    elif incident.trying:
        lines.append("No run has failed for good yet: the step is tried again within its run.")
    lines.append(f"What to do: {_page(incident.page).remedy}")
    if example is not None:
        lines += _links(example, place)
    elif incident.trying:
        lines.append(_run_link(incident.trying[0], place))
    return lines


def _recovery(incident: Incident, title: str) -> list[str]:
    closed = incident.closed if incident.closed is not None else incident.last
    lines = [
        f"Over: {title[0].lower()}{title[1:]}.",
        f"It lasted {duration(closed - incident.opened)}, from {wall_clock(incident.opened)} to "
        f"{wall_clock(closed)}.",
    ]
    lines += _extent(incident)
    lines.append(f"The cause was: {first_sentence(incident.cause)}")
    return lines


def _extent(incident: Incident) -> list[str]:
    lines = []
    if incident.runs:
        times = "1 run has failed" if incident.runs == 1 else f"{incident.runs} runs have failed"
        named = incident.videos[:_NAMED_VIDEOS]
        more = "" if len(named) == len(incident.videos) and not incident.more_videos else " and others"
        videos = f", of {', '.join(named)}{more}" if incident.runs > 1 and named else ""
        lines.append(f"{times} because of it{videos}.")
    if incident.troubles:
        counted = [f"{name} ({count})" if count > 1 else name for name, count in incident.troubles.items()]
        lines.append(f"Concerned: {', '.join(counted)}.")
    return lines


def _extent_in_brief(incident: Incident) -> str:
    return f" ({incident.runs} runs)" if incident.runs > 1 else ""


def _page(page: str) -> Condition | Policy:
    """Title and remedy of a page; an incident of another version may have one that is gone."""
    if page in set(FailureClass):
        return POLICIES[FailureClass(page)]
    return CONDITIONS.get(page, Condition(page, "See the runbook."))


def _links(example: Mapping[str, object], place: Place) -> list[str]:
    lines = [_run_link(str(example["run_id"]), place)]
    job, stream, video = example["job_id"], example["log_stream"], example["video_id"]
    if place.browse_url is not None and video is not None:
        lines.append(f"Browse: {place.browse_url.rstrip('/')}/videos/{quote(str(video), safe='')}")
    if job is not None:
        lines.append(f"Job: {job_url(place.region, str(job))}" if place.region else f"Job: {job}")
    if place.region is None:
        if video is not None:
            lines.append(f"Logs: capstone logs {video}")
        return lines
    if stream is not None:
        lines.append(f"Container's log: {log_url(place.region, VIDEO_ANALYSIS.name, str(stream))}")
    at_ms = int(float(str(example["ended_at"])) * 1000)
    lines.append(f"Logs at that time: {_logs_url(place.region, str(example['run_id']), at_ms)}")
    return lines


def _run_link(run_id: str, place: Place) -> str:
    if place.ui_url is None:
        return f"Run: {run_id} in Dagster's UI (CAPSTONE_UI_URL makes this a link)"
    return f"Run: {place.ui_url.rstrip('/')}/runs/{run_id}"


def _logs_url(region: str, run_id: str, at_ms: int) -> str:
    """The analysis group's page of the AWS console, around a time, with one run's lines."""
    wanted = quote(quote(f'"{run_id}"', safe=""), safe="").replace("%", "$")
    span = f"$3Fstart$3D{at_ms - _BEFORE_MS}$26end$3D{at_ms + _AFTER_MS}$26filterPattern$3D{wanted}"
    group = log_url(region, VIDEO_ANALYSIS.name, "")
    return group.removesuffix("/") + span


def _subject(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    printable = "".join(letter if letter.isprintable() else " " for letter in plain)
    shown = " ".join(printable.split())
    return shown if len(shown) <= MAX_SUBJECT else shown[: MAX_SUBJECT - 3].rstrip() + "..."
