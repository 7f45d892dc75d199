"""`capstone reanalyze`: requests a backfill for named or selected videos."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.finding import find_video
from capstone_dagster.commands.joining import dagster_instance, open_database, read_settings, repository
from capstone_dagster.commands.moments import HOW_TO_TYPE, checked, read_moment
from capstone_dagster.commands.options import DEFAULT_STATE, ByOption, DryRunOption, JsonOption, StateOption

if TYPE_CHECKING:
    from capstone_dagster.commands.estimating import Estimate
    from capstone_dagster.services import Services

Row = dict[str, Any]
TODAY = "today"


def reanalyze(
    videos: Annotated[list[str] | None, typer.Argument(metavar="VIDEO", help="Ids or external ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every video.")] = False,
    camera: Annotated[str | None, typer.Option(help="Videos of this camera.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", callback=checked, help=f"Videos uploaded since: {HOW_TO_TYPE}."),
    ] = None,
    model_not: Annotated[
        str | None,
        typer.Option(
            "--model-not",
            metavar="today|NAME|SHA256",
            help="Videos whose current analysis was made by another model than the configured one "
            "(`today`), or than that of this name or beginning of its SHA-256.",
        ),
    ] = None,
    events_only: Annotated[
        bool,
        typer.Option("--events-only", help="Derive events again from stored detections, without a GPU."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Repeat finished detections.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    by: ByOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Analyse videos again with the configured model, settings and rules, as a backfill in Dagster's UI does.

    After a change of the model, **capstone reanalyze --model-not today --dry-run** shows how many videos have
    results of another model, how many runs would analyse them, and an estimate of GPU hours from the latest
    passes. Several options together select the videos that meet all of them.

    Existing detections are reused, so that videos that are up to date take seconds. Each video's old analysis
    is current until the new one is complete, and **capstone rollback** restores it. Up to 20 videos that are
    adjacent in Dagster's list share a run and its loaded model; a bad one fails alone.

    Example: `capstone reanalyze --camera gate --dry-run`
    """
    from capstone_dagster.assets.declared import backfills
    from capstone_dagster.services import Services
    from capstone_dagster.storage.videos import videos_with_models

    narrowed = any(option is not None for option in (camera, since, model_not))
    if sum((bool(videos), everything, narrowed)) != 1:
        raise typer.BadParameter(
            "name videos, or choose --all, or choose them by --camera, --since and --model-not"
        )
    if events_only and force:
        raise typer.BadParameter("--force repeats detections, but --events-only keeps them")
    database = open_database(state)
    after = read_moment(since)
    services = Services(read_settings())
    needed = model_not == TODAY or (dry_run and not events_only)
    sha256 = _todays_model(services) if needed else ""
    other = sha256 if model_not == TODAY else model_not
    named = {find_video(database, video) for video in videos or []}
    known = database.transact(videos_with_models)
    rows = [
        row
        for row in known
        if (not named or row["video_id"] in named)
        and camera in (None, row["camera"])
        and (after is None or row["uploaded_at"] >= after)
        and (other is None or _made_by_another(row, other))
    ]
    if camera is not None and all(row["camera"] != camera for row in known):
        raise typer.BadParameter(
            f"no video of camera {camera!r} is known; `capstone status` lists those that are"
        )
    if not rows:
        _show_nothing(_none_found(camera, since, model_not), as_json=as_json)
        return
    if model_not not in (None, TODAY) and all(
        _made_by_another(row, str(model_not)) for row in known if row["model_sha256"]
    ):
        terminal.note(f"No current analysis is by a model {model_not!r}: check the spelling.")
    chosen = {row["video_id"] for row in rows}
    with dagster_instance(state) as instance:
        runs = backfills.in_runs(backfills.known_partitions(instance), chosen)
        found = [video for run in runs for video in run]
        if missing := sorted(chosen.difference(found)):
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise typer.BadParameter(f"Dagster has no partition for {names}: upload or request it again")
        if dry_run:
            from capstone_dagster.commands.estimating import estimate

            work = estimate(services, rows, model_sha256=sha256, events_only=events_only, force=force)
            _show_plan(found, len(runs), work, as_json=as_json)
            return
        backfill_id = backfills.request_backfill(
            instance,
            repository(),
            found,
            events_only=events_only,
            force=force,
            by=by or getpass.getuser(),
        )
    if as_json:
        terminal.print_json({"backfill_id": backfill_id, "videos": found, "runs": len(runs)})
    else:
        begins = "Dagster begins within half a minute, and shows how far it is."
        print(f"Backfill {backfill_id}: {_count(found, len(runs))}. {begins}")


def _show_plan(found: Sequence[str], runs: int, work: Estimate, *, as_json: bool) -> None:
    if as_json:
        plan = {"backfill_id": None, "videos": found, "runs": runs, "estimate": work.as_fields()}
        terminal.print_json(plan)
    else:
        print(f"{_count(found, runs)} would be analysed again.\n{work.described(len(found))}")


def _show_nothing(why: str, *, as_json: bool) -> None:
    # Not an error: a script may call this after every change of the model.
    if as_json:
        terminal.print_json({"backfill_id": None, "videos": [], "runs": 0})
    terminal.note(why)


def _count(videos: Sequence[str], runs: int) -> str:
    plural = "s" if len(videos) > 1 else ""
    return f"{len(videos)} video{plural} in {runs} run{'s' if runs > 1 else ''}"


def _todays_model(services: Services) -> str:
    """The SHA-256 of the model that a backfill would use; the model is downloaded if necessary."""
    from capstone_dagster.analysis import model_sha256

    return services.settings.model_sha256 or model_sha256(services.model_path())


def _made_by_another(row: Row, model: str) -> bool:
    """Whether a video's current analysis is by a model with another name and SHA-256."""
    if row["model_sha256"] is None:
        return False
    name = PurePosixPath(model).name
    return row["model"] != name and not row["model_sha256"].startswith(model.lower())


def _none_found(camera: str | None, since: str | None, model_not: str | None) -> str:
    which = [f"of camera {camera!r}"] if camera is not None else []
    if since is not None:
        is_duration = re.fullmatch(r"[\d.]+[a-z]+", since)
        which.append(f"uploaded within the last {since}" if is_duration else f"uploaded since {since}")
    which += [f"analysed by another model than {model_not}"] if model_not is not None else []
    return " ".join(["Nothing to analyse again: no video", *which, "is known."])
