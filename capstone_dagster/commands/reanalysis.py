"""`capstone reanalyze`: a backfill for videos that are named or chosen."""

from __future__ import annotations

import getpass
from typing import Annotated, Any, Literal

import typer

from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import DEFAULT_STATE, StateOption, dagster_instance, event_store


def reanalyze(
    videos: Annotated[
        list[str] | None, typer.Argument(metavar="[VIDEO]...", help="Ids or external ids.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every video.")] = False,
    camera: Annotated[str | None, typer.Option(help="Every video of a camera.")] = None,
    events_only: Annotated[
        bool,
        typer.Option("--events-only", help="Derive events anew from stored detections, which needs no GPU."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make finished detections again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, no more.")] = False,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="`json`: one object.")] = "text",
    by: Annotated[str | None, typer.Option("--by", help="Who orders it.", show_default="this user")] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Analyse videos again with today's model, settings and rules, as a backfill in Dagster's pages does.

    Detections that exist for them are reused, so that what is up to date costs seconds. Each video's old
    analysis is current until its new one is complete, and **capstone rollback** brings it back. Several
    videos share a run and its loaded model; a bad one fails alone.
    """
    import json

    from capstone_dagster.assets import backfills

    if sum((bool(videos), everything, camera is not None)) != 1:
        raise typer.BadParameter("name videos, or choose them by --all or --camera: one of the three")
    if events_only and force:
        raise typer.BadParameter("--force makes detections again, which --events-only leaves as they are")
    store = event_store(state)
    if videos:
        chosen = {find_video(store, video) for video in videos}
    else:
        rows = store.current_status()
        chosen = {row["video_id"] for row in rows if everything or row["camera"] == camera}
    if not chosen:
        whose = "" if camera is None else f" of camera {camera!r}"
        raise typer.BadParameter(f"no video{whose} is known; `capstone status` lists those that are")
    with dagster_instance(state) as instance:
        runs = backfills.in_runs(backfills.known_partitions(instance), chosen)
        found = [video for run in runs for video in run]
        if missing := sorted(chosen.difference(found)):
            told = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise typer.BadParameter(f"Dagster has no partition for {told}: upload or request it again")
        backfill_id = None
        if not dry_run:
            backfill_id = backfills.request_backfill(
                instance,
                _repository(),
                found,
                events_only=events_only,
                force=force,
                by=by or getpass.getuser(),
            )
    if form == "json":
        print(json.dumps({"backfill_id": backfill_id, "videos": found, "runs": len(runs)}, indent=2))
        return
    count = (
        f"{len(found)} video{'s' if len(found) > 1 else ''} in {len(runs)} run{'s' if len(runs) > 1 else ''}"
    )
    if backfill_id is None:
        print(f"{count} would be analysed again.")
    else:
        print(
            f"Backfill {backfill_id}: {count}. Dagster begins within half a minute, and shows how far it is."
        )


def _repository() -> Any:
    from capstone_dagster.definitions import defs

    return defs.get_repository_def()
