"""How many GPUs this machine has, asked of the driver: no CUDA library is loaded for it."""

import subprocess

# A driver that hangs must not keep anything from starting.
NVIDIA_SMI_DEADLINE_S = 10.0


def gpu_count() -> int:
    """GPUs of this machine, as NVIDIA's driver lists them; 0 without one."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    if listed.returncode != 0:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
