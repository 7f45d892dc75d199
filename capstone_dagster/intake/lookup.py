"""What S3 says of the objects that messages name: several asked at once, each answered or not in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple

from capstone_dagster.intake.identity import identify
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.sources import head_source
from capstone_dagster.storage.uploads import VideoUpload

# HeadObject takes some 20 ms; sixteen at once keep a tick of 500 messages under a second of waiting.
_HEADS_AT_ONCE = 16


class Found(NamedTuple):
    """The upload that a request speaks of.

    Attributes:
        archived: no worker can read it until it is restored.
    """

    upload: VideoUpload
    archived: bool


def look_up(
    requests: Sequence[AnalysisRequest], services: Services, deadline: float
) -> Iterator[Callable[[], Found]]:
    """For each request something that returns its upload or raises why there is none, in order.

    Args:
        deadline: of `time.monotonic()`. What S3 has not answered by then counts as not answered.
    """

    def ask(request: AnalysisRequest) -> Found:
        source = head_source(services.s3, request.bucket, request.key, request.version_id)
        try:
            return Found(identify(request, source, services.settings), source.archived)
        except Exception as error:
            # A defect met by one message must not keep its neighbours waiting.
            raise StorageUnavailable(f"{source.url} could not be identified: {error!r}") from error

    pool = ThreadPoolExecutor(_HEADS_AT_ONCE)
    asked = [pool.submit(ask, request) for request in requests]
    wait(asked, timeout=max(0.0, deadline - time.monotonic()))
    # Without waiting for stragglers: their threads end by their own time-outs.
    pool.shutdown(wait=False, cancel_futures=True)

    def answer(future: Future[Found], request: AnalysisRequest) -> Found:
        if not future.done() or future.cancelled():
            raise StorageUnavailable(
                f"S3 has not answered about s3://{request.bucket}/{request.key} in this tick's time."
            )
        return future.result()

    return (partial(answer, future, request) for future, request in zip(asked, requests, strict=True))
