"""Which part of the work on a video a run does, by its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

# The one step with the pass over the pixels, as runs name it: what takes the GPU.
PASS_STEP = "video_analysis.analyze_video"
_GRAPH, _OP = PASS_STEP.split(".")


def has_pass(run: dg.DagsterRun) -> bool:
    """Whether the pass is part of the run; it is not where only publishing was left to do."""
    return not run.step_keys_to_execute or PASS_STEP in run.step_keys_to_execute


def configured_pass(config: Mapping[str, Any]) -> dict[str, Any]:
    """The run configuration that gives the pass its configuration."""
    return {"ops": {_GRAPH: {"ops": {_OP: {"config": config}}}}}


def pass_config(run_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the pass within a run's; empty if there is none."""
    section: Any = run_config
    for name in ("ops", _GRAPH, "ops", _OP, "config"):
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}
