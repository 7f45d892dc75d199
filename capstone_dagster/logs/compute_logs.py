"""Compute logs without helper processes: what a step prints goes to its process's own standard output.

Dagster's way, a file for each stream with a `tail` that copies it back and a Python process that watches the
`tail`, costs four processes a run, 0.1 s of processor time, and loses a killed process's last lines. awslogs
carries the standard output of a process anyway. What sensors log in their ticks is kept in S3, as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from capstone_dagster.dagster_private import CapturedLogContext, CapturedLogMetadata, ComputeIOType

# Dagster keys a step's output by run id, this, and a random name.
_OF_STEPS = "compute_logs"
_WHERE = (
    b"Steps print to the standard output of the run's process. `capstone logs VIDEO` shows what they log; "
    b"everything else is in the log of the AWS Batch job (tag batch_gpu/log_stream), or locally in "
    b".capstone/logs/dagster-daemon.log.\n"
)


class TickLogsInS3(S3ComputeLogManager):
    """Keeps what sensors log, and says where the output of steps is."""

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """Leave standard output and error alone."""
        yield CapturedLogContext(log_key)

    def is_capture_complete(self, log_key: Sequence[str]) -> bool:
        return _of_step(log_key) or super().is_capture_complete(log_key)

    def get_log_data_for_type(
        self, log_key: Sequence[str], io_type: ComputeIOType, offset: int, max_bytes: int | None
    ) -> tuple[bytes | None, int]:
        if _of_step(log_key):
            return _WHERE[offset:] or None, len(_WHERE)
        return super().get_log_data_for_type(log_key, io_type, offset, max_bytes)

    def get_log_metadata(self, log_key: Sequence[str]) -> CapturedLogMetadata:
        return CapturedLogMetadata() if _of_step(log_key) else super().get_log_metadata(log_key)


def _of_step(log_key: Sequence[str]) -> bool:
    return len(log_key) == 3 and log_key[1] == _OF_STEPS
