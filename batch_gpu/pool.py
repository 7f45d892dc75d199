"""`python -m batch_gpu.pool`: set the GPU pool's limit, which dagster.yaml cannot take from the environment.

A start-up step, run where the daemon runs. With `compute: local` the limit is this machine's number of GPUs
(1 on a CPU: one analysis uses all cores); with `compute: batch` it is `max_gpu_jobs`, because AWS Batch has
the machines.
"""

import subprocess

import dagster as dg

from batch_gpu.launcher import BatchGpuRunLauncher

# A driver that hangs must not keep the stack from starting.
NVIDIA_SMI_DEADLINE_S = 10.0


def gpu_count() -> int:
    """GPUs of this machine, as NVIDIA's driver lists them; 0 without one."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if not listed.returncode else 0


def set_pool_limit(instance: dg.DagsterInstance) -> int:
    """Set the limit for the instance's launcher, and return it."""
    launcher = instance.run_launcher
    if not isinstance(launcher, BatchGpuRunLauncher):
        raise TypeError(f"The instance's run launcher is {type(launcher).__name__}, not BatchGpuRunLauncher.")
    config = launcher.config
    limit = max(1, gpu_count()) if config.compute == "local" else config.max_gpu_jobs
    instance.event_log_storage.set_concurrency_slots(config.gpu_pool, limit)
    return limit


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        print(f"The GPU pool's limit is {set_pool_limit(instance)}.")
