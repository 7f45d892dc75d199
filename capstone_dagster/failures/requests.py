"""Which request a run serves, and how often the system has started it again: from its tags alone."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from capstone_dagster.dagster_private import (
    BACKFILL_ID_TAG,
    IMPLICIT_ASSET_JOB_NAME,
    PARENT_RUN_ID_TAG,
    ROOT_RUN_ID_TAG,
)
from capstone_dagster.run_tags import (
    FAILED_BEFORE_TAG,
    REEXECUTION_OF_TAG,
    REEXECUTION_TAG,
    REQUEST_RUN_TAG,
    UPLOAD_TAG,
)

# What the upload sensor starts, and what Dagster calls the runs of a backfill of assets.
UPLOAD_JOB = "analyze_upload"
JOBS = (UPLOAD_JOB, IMPLICIT_ASSET_JOB_NAME)


def attempts(tags: Mapping[str, str]) -> int:
    """How often the system has started a run's request again; an operator's re-execution begins anew."""
    number = tags.get(REEXECUTION_TAG, "0")
    # Anyone may write a tag: one that is no number must stop no sensor.
    return int(number) if is_later_try(tags) and number.isdecimal() else 0


def failed_before(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The classes by which earlier tries of a run's request failed in their pass over the video."""
    classes = tags.get(FAILED_BEFORE_TAG, "") if is_later_try(tags) else ""
    return tuple(filter(None, classes.split(",")))


def request_run_id(run_id: str, tags: Mapping[str, str]) -> str:
    """The run that was asked for: this one, or the one that the system tries again in it."""
    if not is_later_try(tags):
        return run_id
    return tags.get(REQUEST_RUN_TAG) or tags[ROOT_RUN_ID_TAG]


def is_later_try(tags: Mapping[str, str]) -> bool:
    """Whether the system, and no person, has started what a run of these tags does again."""
    # The UI copies a run's tags to its re-execution: only the parent's id says who started a run.
    ours = tags.get(REEXECUTION_OF_TAG)
    return ours is not None and ours == tags.get(PARENT_RUN_ID_TAG)


def is_kept_going(run: dg.DagsterRun) -> bool:
    """Whether the system finishes a run's work whatever fails: one for an upload, or a backfill's, and later
    tries of these. Runs started by others are theirs to start again.
    """
    if run.job_name not in JOBS:
        return False
    # A later try of a backfill's run no longer belongs to the backfill once that is over.
    later = REEXECUTION_OF_TAG in run.tags and is_later_try(run.tags)
    return later or BACKFILL_ID_TAG in run.tags or (run.job_name == UPLOAD_JOB and UPLOAD_TAG in run.tags)
