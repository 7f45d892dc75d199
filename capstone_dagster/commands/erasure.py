"""`capstone delete`: removes every trace of a video, and reports what it removed and what it cannot."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import dagster_instance, join_local_stack, read_settings
from capstone_dagster.commands.options import (
    DEFAULT_STATE,
    ByOption,
    DryRunOption,
    JsonOption,
    StateOption,
    VideoArgument,
)

if TYPE_CHECKING:
    from capstone_dagster.removal.erasure import Plan
    from capstone_dagster.services import Services


def delete(
    video: VideoArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    by: ByOption = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Delete a video with every trace of it: files, pictures, events, and Dagster's records.

    Its runs are cancelled first. Then all versions of the uploaded object are deleted, with derived files
    (except detections that another video with the same bytes uses), rows, partition and runs. A line in
    `capstone.erasures` remains: a hash of the id, when, by whom, and how much. If it is interrupted, repeat
    it. A later upload is a new video. docs/privacy.md says what cannot be deleted.

    Example: `capstone delete 84 --dry-run`
    """
    from capstone_dagster import terminal_tables as tables
    from capstone_dagster.removal.erasure import VideoErasure
    from capstone_dagster.services import Services

    join_local_stack(state)
    services = Services(read_settings())
    video_id = _known(services, video)
    with dagster_instance(state) as instance:
        eraser = VideoErasure(services, instance)
        with terminal.progress(f"Looking for {video_id}"):
            plan = eraser.plan(video_id)
            counts = eraser.count(plan)
        if dry_run:
            _show(video_id, plan, counts, as_json=as_json, done=False)
            return
        if not yes:
            terminal.err.print(tables.counts_table(counts, "what", "there is"))
            typer.confirm(f"Delete {video_id} for good?", abort=True, err=True)
        with terminal.progress(f"Deleting {video_id}") as report:
            removed = eraser.erase(plan, by=by or getpass.getuser(), report=report)
        # In the order of the plan; what an earlier attempt removed follows.
        removed = {name: removed[name] for name in (*counts, *removed) if name in removed}
        _show(video_id, plan, removed, as_json=as_json, done=True)
        if not as_json and (sensors := eraser.what_remembers(plan.names)):
            terminal.note(f"The cursors of {', '.join(sensors)} still name it, until their next change.")


def _known(services: Services, video: str) -> str:
    """The id of the video, also of a deleted one, to look again for data that arrived late."""
    from capstone_dagster.storage.erasures import last_erasure
    from capstone_dagster.wall_clock import wall_clock

    try:
        return find_video(services.database, video)
    except typer.BadParameter:
        last = services.database.transact(last_erasure, video)
        if last is None:
            raise
        message = "was being deleted" if last.finished_at is None else "was deleted already"
        when = wall_clock(last.finished_at or last.begun_at)
        terminal.note(f"{video} {message} ({when}, by {last.requested_by}); looking for remaining data.")
        return video


def _show(video_id: str, plan: Plan, counts: Mapping[str, int], *, as_json: bool, done: bool) -> None:
    from capstone_dagster import terminal_tables as tables

    if as_json:
        about = {"video_id": video_id, "deleted": done, "counts": dict(counts), "kept": sorted(plan.kept)}
        cancelled = {} if done else {"runs_to_end": list(plan.cancel), "obstacle": plan.obstacle}
        terminal.print_json({**about, **cancelled, "cannot_be_deleted": list(_LEFT)})
        return
    terminal.print_table(tables.counts_table(counts, "what", "deleted" if done else "would be deleted"))
    for kept in sorted(plan.kept):
        terminal.say(f"Detections {kept} stay: another video with the same bytes uses them.")
    if not done:
        for run_id in plan.cancel:
            terminal.say(f"Run {run_id} would be cancelled first.")
        if plan.obstacle:
            terminal.say(f"It cannot be done now: {plan.obstacle}")
        return
    terminal.say(f"{video_id} is deleted. What cannot be deleted:")
    for left in _LEFT:
        terminal.say(f"- {left}")


# docs/privacy.md says the same with reasons.
_LEFT = (
    "messages that are in the queue or among the dead letters (14 days; a late one finds no object), and "
    "notices that were sent",
    "log lines in CloudWatch, which name its id and address (7, 14 or 30 days), and traces",
    "backups of the databases, as long as they are kept",
)
