"""Passes over the same pixels, by the tags of runs: which runs are doing it, have done it, or repeated it.

A re-executed run inherits its parent's tags, so the tag for repeated work names the run that repeated it.
"""

from __future__ import annotations

import dagster as dg

from capstone_dagster.run_tags import DETECTION_TAG, DUPLICATE_TAG, STORED_TAG


def doubled_work(run: dg.DagsterRun) -> bool:
    """Whether this run passed over pixels that another one, of which it is no retry, had or was at."""
    return run.tags.get(DUPLICATE_TAG) == run.run_id


def same_work(instance: dg.DagsterInstance, run_id: str, detection_id: str) -> list[dg.DagsterRun]:
    """Runs that pass over the same pixels now, or have finished doing so.

    Left out are the run itself and those of the same root, which are tries of one request.
    """
    own = instance.get_run_by_id(run_id)
    root = run_id if own is None else _root(own)
    found = instance.get_runs(dg.RunsFilter(tags={DETECTION_TAG: detection_id}))
    return [
        run
        for run in found
        if _root(run) != root
        and (run.status == dg.DagsterRunStatus.STARTED or run.tags.get(STORED_TAG) == detection_id)
    ]


def _root(run: dg.DagsterRun) -> str:
    return run.root_run_id or run.run_id
