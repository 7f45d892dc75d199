"""Which part of the work on a video a run does, by its steps."""

from __future__ import annotations

import dagster as dg

# The one step with the pass over the pixels, as runs name it: what takes the GPU.
PASS_STEP = "video_analysis.analyze_video"


def has_pass(run: dg.DagsterRun) -> bool:
    """Whether the pass is part of the run; it is not where only publishing was left to do."""
    return not run.step_keys_to_execute or PASS_STEP in run.step_keys_to_execute
