"""What can go wrong in an analysis, each with the failure class that operators and retries know it by."""

from __future__ import annotations

from typing import ClassVar


class AnalysisError(Exception):
    """A failure whose message says what was expected, what came, and what to do about it."""

    failure_class: ClassVar[str] = "internal"


class UndecodableVideo(AnalysisError):
    """The file holds no video picture that can be decoded; trying again would change nothing."""

    failure_class = "undecodable-video"


class DecoderLost(AnalysisError):
    """The process that decodes was ended by somebody else, as a machine without memory does; try again."""

    failure_class = "worker-lost"


class ModelUnavailable(AnalysisError):
    """The detector's weights are missing, are not the ones that were pinned, or do not load."""

    failure_class = "model-unavailable"


class PyTorchMissing(ModelUnavailable):
    """Something needs PyTorch and Ultralytics, which a small installation goes without."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} needs PyTorch and Ultralytics, which are not installed; run `make torch`, or "
            "`pip install 'capstone-dagster[torch]'`."
        )


class GpuOutOfMemory(AnalysisError):
    """The accelerator had no room for the model or for one batch."""

    failure_class = "gpu-out-of-memory"


class GpuError(AnalysisError):
    """The accelerator failed for any other reason than memory."""

    failure_class = "gpu-error"


class InvalidAnalysisSettings(AnalysisError, ValueError):
    """A setting that cannot work, refused before any frame is decoded."""

    failure_class = "configuration"


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for a sentence of ours."""
    return (str(error).splitlines() or [""])[0][:200]
