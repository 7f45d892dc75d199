"""Which machine a run needs, decided from the run itself: a GPU if any step that it will execute says so."""

import re
from collections.abc import Collection, Mapping
from typing import Literal, cast

from batch_gpu.errors import ConfigurationError

ComputeClass = Literal["gpu", "cpu"]
COMPUTE_TAG = "batch_gpu/compute"

# "collect[42]" is one copy of the dynamic step "collect[?]", under which the plan holds its tags.
_COPY = re.compile(r"\[[^\]]*\]")


def compute_class(
    steps: Mapping[str, Mapping[str, str]], selected: Collection[str] | None, run_tags: Mapping[str, str]
) -> ComputeClass:
    """The class of a run.

    Args:
        steps: each step of the run's execution plan with its op's tags.
        selected: keys of the steps that this run executes; None means all.
        run_tags: the run's own tags, of which `batch_gpu/compute` wins over every op.

    Raises:
        ConfigurationError: a tag is neither `gpu` nor `cpu`.
    """
    if COMPUTE_TAG in run_tags:
        return _checked(run_tags[COMPUTE_TAG], "The run")
    wanted = None if selected is None else {_COPY.sub("[?]", key) for key in selected}
    needs = {
        _checked(tags[COMPUTE_TAG], f"Step {key}")
        for key, tags in steps.items()
        if COMPUTE_TAG in tags and (wanted is None or _COPY.sub("[?]", key) in wanted)
    }
    return "gpu" if "gpu" in needs else "cpu"


def _checked(value: str, whose: str) -> ComputeClass:
    if value not in ("gpu", "cpu"):
        raise ConfigurationError(
            f"{whose} has the tag {COMPUTE_TAG}={value!r}; expected gpu or cpu. Correct the tag."
        )
    return cast("ComputeClass", value)
