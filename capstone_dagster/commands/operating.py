"""`capstone cancel`, `prioritize` and `retry`: operators' control of a video's runs."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import dagster_instance, open_database, repository
from capstone_dagster.commands.moments import HOW_TO_TYPE, checked, read_moment
from capstone_dagster.commands.options import (
    DEFAULT_STATE,
    ByOption,
    DryRunOption,
    JsonRowsOption,
    StateOption,
    VideoArgument,
)

if TYPE_CHECKING:
    from datetime import datetime

    from capstone_dagster.runs.by_hand import Restart
    from capstone_dagster.storage.database import Database

# Also the highest that a back end may request; only the probe of a paused intake has a higher one.
_FIRST = 1000


def cancel(
    video: VideoArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Count a run as cancelled even if its worker does not answer.")
    ] = False,
    by: ByOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """End a video's analysis, whether it is queued, waits for a machine or runs. It is not retried.

    Its status becomes `cancelled`. To analyse it after all, materialize its partition in Dagster's pages, or
    upload it again.

    Example: `capstone cancel 84 --by kim`
    """
    from capstone_dagster.runs import by_hand

    database = open_database(state)
    row = _row(database, video)
    with dagster_instance(state) as instance, terminal.progress(f"Ending {row['video_id']}"):
        ended = by_hand.cancel(instance, database, row, by=by or getpass.getuser(), force=force)
    print(f"{row['video_id']} is cancelled; {_runs(ended)} ended.")


def prioritize(
    video: VideoArgument,
    priority: Annotated[
        int, typer.Option("--priority", min=-1000, max=1000, help="Higher goes first; others have 0.")
    ] = _FIRST,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Move a video that waits in the queue before the others, or after them.

    Example: `capstone prioritize 84`
    """
    from capstone_dagster.runs import by_hand

    database = open_database(state)
    row = _row(database, video)
    with dagster_instance(state) as instance:
        found = by_hand.prioritize(instance, row, priority)
    if not found:
        print(f"{row['video_id']} has left the queue meanwhile.")
    for place in found.values():
        print(f"{row['video_id']} is {place}.")


def retry(
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEO", help="Ids or external ids; else all that the options choose."),
    ] = None,
    failure: Annotated[
        str | None, typer.Option("--class", help="Only those that failed for this class.", metavar="CLASS")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", callback=checked, help=f"Only those that failed since: {HOW_TO_TYPE}."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonRowsOption = False,
    by: ByOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Start failed videos again, each from the step that failed; finished steps are kept.

    Name the videos, or choose by class and time. Exits 1 if a video could not be started again; the others
    are started.

    Example: `capstone retry --class database-unavailable --since 2h --dry-run`
    """
    if not videos and failure is None and since is None:
        raise typer.BadParameter("name videos, or choose by --class or --since")
    _check_class(failure)
    from capstone_dagster.runs import by_hand  # seconds

    database = open_database(state)
    rows = _chosen(database, videos or [], failure, read_moment(since))
    who = by or getpass.getuser()
    accounts: list[dict[str, Any]] = []
    with dagster_instance(state) as instance, terminal.progress("Looking at failed runs") as report:
        restarts: list[Restart] = []
        for row in rows:
            try:
                restarts.append(by_hand.restart_of(instance, row))
            except by_hand.Refused as refused:
                accounts.append(_account(row["video_id"], None, refusal=str(refused)))
        if restarts and not dry_run:
            report("Loading the definitions")
            definitions = repository()
        for restart in restarts:
            if dry_run:
                accounts.append(_account(restart.video_id, restart))
                continue
            try:
                again = by_hand.start_again(instance, definitions, database, restart, by=who)
            except by_hand.Refused as refused:
                accounts.append(_account(restart.video_id, restart, refusal=str(refused)))
            else:
                accounts.append(_account(restart.video_id, restart, run_id=again.run_id))
    _show(accounts, as_json=as_json, dry_run=dry_run)
    if any(each["refusal"] for each in accounts):
        raise typer.Exit(1)


def _account(
    video_id: str, restart: Restart | None, *, run_id: str | None = None, refusal: str | None = None
) -> dict[str, Any]:
    """What became, or would become, of one video."""
    return {
        "video_id": video_id,
        "run_id": run_id,
        "from_step": restart.resumption.steps[0] if restart else None,
        "gpu": restart.gpu if restart else None,
        "refusal": refusal,
    }


def _show(accounts: list[dict[str, Any]], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        terminal.print_json(accounts)
        return
    for each in accounts:
        if each["refusal"]:
            terminal.note(each["refusal"])
        else:
            run = f", run {each['run_id']}" if each["run_id"] else ""
            print(f"{each['video_id']}: from {each['from_step']}{run}")
    started = [each for each in accounts if not each["refusal"]]
    with_gpu = sum(bool(each["gpu"]) for each in started)
    what = "would be started again" if dry_run else "started again"
    left = f"; {len(accounts) - len(started)} left alone" if len(started) < len(accounts) else ""
    print(f"{_runs(len(started))} {what}, {with_gpu} of them on the GPU{left}.")


def _chosen(
    database: Database, videos: list[str], failure: str | None, after: datetime | None
) -> list[dict[str, Any]]:
    """Rows of `current_status`: those named, or all that failed so."""
    from capstone_dagster.storage.video_status import failed_uploads

    if not videos:
        return database.transact(failed_uploads, failure, after)
    rows = [_row(database, video) for video in dict.fromkeys(videos)]
    return [
        row
        for row in rows
        if (failure is None or row["failure_class"] == failure)
        and (after is None or row["updated_at"] >= after)
    ]


def _row(database: Database, video: str) -> dict[str, Any]:
    from capstone_dagster.storage.video_status import current_status

    video_id = find_video(database, video)
    return next(row for row in database.transact(current_status, video_id) if row["video_id"] == video_id)


def _check_class(failure: str | None) -> None:
    from capstone_dagster.failures.classes import FailureClass

    if failure is not None and failure not in set(FailureClass):
        raise typer.BadParameter(f"{failure!r} is no failure class; there are {', '.join(FailureClass)}")


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
