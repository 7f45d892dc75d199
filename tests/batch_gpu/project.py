"""A small Dagster project whose runs the tests launch: steps of both kinds, waiting or failing on request.

Runs talk to the test through files in the directory that BATCH_GPU_TEST names.
"""

import os
import sqlite3
import time
from pathlib import Path

import dagster as dg

from batch_gpu.sensor import batch_runs_sensor

GPU = {"batch_gpu/compute": "gpu"}
CPU = {"batch_gpu/compute": "cpu"}
videos = dg.StaticPartitionsDefinition(["a", "b"])


def said(what: str) -> Path:
    return Path(os.environ["BATCH_GPU_TEST"]) / what


@dg.op(tags=GPU)
def look(context: dg.OpExecutionContext) -> int:
    print(f"looking on attempt {os.environ.get('AWS_BATCH_JOB_ATTEMPT')}", flush=True)
    with said("looked").open("a") as file:
        file.write(context.run_id + "\n")
    return 1


@dg.op(tags=CPU)
def think(seen: int) -> int:
    if said("fail-thinking").exists():
        raise dg.Failure("asked to fail", allow_retries=False)
    return seen + 1


@dg.op
def tell(thought: int) -> None:
    assert thought == 2


@dg.op(tags=CPU)
def endless(context: dg.OpExecutionContext) -> None:
    print("waiting without end", flush=True)
    print('{"_aws": {"CloudWatchMetrics": []}, "RunsStarted": 1}', flush=True)
    # Written whole before it has its name, so that whoever waits for it reads all of it.
    unfinished = said("endless.unfinished")
    unfinished.write_text(f"{context.run_id} {os.getpid()}")
    unfinished.rename(said("endless"))
    while not said("enough").exists():
        time.sleep(0.05)


@dg.job(executor_def=dg.in_process_executor)
def look_think_tell() -> None:
    tell(think(look()))


@dg.job(executor_def=dg.in_process_executor)
def waits() -> None:
    endless()


@dg.op
def lose_storage(context: dg.OpExecutionContext) -> None:
    """Dagster's storage takes no event of this worker for as long as the test has not ended the outage."""
    storage = context.instance.event_log_storage
    store = storage.store_event

    def away(event: object) -> None:
        if not said("storage-is-back").exists():
            said("storage-is-away").touch()
            raise sqlite3.OperationalError("the storage is away")
        store(event)  # type: ignore[arg-type]

    storage.store_event = away  # type: ignore[method-assign]


@dg.job(executor_def=dg.in_process_executor)
def loses_its_storage() -> None:
    lose_storage()


@dg.op(out=dg.DynamicOut(int), tags=CPU)
def parts():  # type: ignore[no-untyped-def]
    for part in ("x", "y"):
        yield dg.DynamicOutput(1, part)


@dg.op(tags=GPU)
def look_at_part(part: int) -> int:
    return part


@dg.job(executor_def=dg.in_process_executor)
def in_parts() -> None:
    parts().map(look_at_part)


@dg.graph_asset(partitions_def=videos)
def detections() -> int:
    return look()


@dg.graph_asset(partitions_def=videos)
def events(detections: int) -> int:
    return think(detections)


defs = dg.Definitions(
    jobs=[look_think_tell, waits, loses_its_storage, in_parts],
    assets=[detections, events],
    sensors=[batch_runs_sensor],
    executor=dg.in_process_executor,
)
