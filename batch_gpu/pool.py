"""`python -m batch_gpu.pool`: set the GPU pool's limit, which dagster.yaml cannot take from the environment.

A start-up step, run where the daemon runs. With `compute: local` the limit is this machine's number of GPUs
(1 on a CPU: one analysis uses all cores) times `runs_per_gpu`; with `compute: batch` it is the number of
machines that AWS Batch may have: `max_gpu_jobs`, or the variable BATCH_GPU_MAX_JOBS where it is set.
"""

import os

import dagster as dg

from batch_gpu.config import LauncherConfig
from batch_gpu.errors import ConfigurationError
from batch_gpu.gpus import gpu_count
from batch_gpu.launcher import BatchGpuRunLauncher

MAX_JOBS_VARIABLE = "BATCH_GPU_MAX_JOBS"


def set_pool_limit(instance: dg.DagsterInstance) -> int | None:
    """Set the limit and return it; None, and nothing is set, if the instance launches its runs otherwise."""
    launcher = instance.run_launcher
    if not isinstance(launcher, BatchGpuRunLauncher):
        return None
    config = launcher.config
    local = config.compute == "local"
    limit = max(1, gpu_count()) * config.runs_per_gpu if local else most_jobs(config)
    instance.event_log_storage.set_concurrency_slots(config.gpu_pool, limit)
    return limit


def most_jobs(config: LauncherConfig) -> int:
    """How many GPU jobs AWS Batch may have at once; what waits beyond them waits in Dagster's queue.

    Raises:
        ConfigurationError: the variable is no number above 0.
    """
    value = os.environ.get(MAX_JOBS_VARIABLE, str(config.max_gpu_jobs))
    if not value.isdecimal() or int(value) == 0:
        raise ConfigurationError(f"{MAX_JOBS_VARIABLE} is {value!r}; expected a number of jobs, 1 or more.")
    return int(value)


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        limit = set_pool_limit(instance)
        shown = "left alone: the instance launches its runs otherwise" if limit is None else str(limit)
        print(f"The GPU pool's limit is {shown}.")
