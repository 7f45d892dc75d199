"""The summary of all videos: how many events each camera had in each hour.

Unlike everything else here it has no partitions: it reads what is current of all of them.
"""

import csv
import io
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from capstone_dagster.assets.failing import as_failure
from capstone_dagster.assets.shown.columns import csv_columns, of_asset, of_materialization
from capstone_dagster.assets.shown.metadata import OWNERS, code_of
from capstone_dagster.dagster_private import PRIORITY_TAG
from capstone_dagster.outside_text import markdown
from capstone_dagster.services import Services
from capstone_dagster.storage.events import hourly_activity, hourly_zones

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

DAYS = 30
ACTIVITY_FILE = "summaries/daily_activity.csv"
_COLUMNS = {
    "camera": "string",
    "hour": "timestamp",
    "events": "integer",
    "persons": "integer",
    "faces": "integer",
}
ZONES_FILE = "summaries/zones.csv"
_ZONE_COLUMNS = ("camera", "hour", "zone", "visits", "dwell_s", "in", "out")
# A picture can distinguish this many cameras; the others are in the file.
_CAMERAS_SHOWN = 12
_DAYS_SHOWN = 7


@dg.asset(
    deps=["events"],
    description=f"""How many events each camera had in each hour of the last {DAYS} days, from the current
events in PostgreSQL, as `{ACTIVITY_FILE}` and as a picture; and how many of them were in each zone
and crossed each line, as `{ZONES_FILE}`.

It is made again a few minutes after events were published or an analysis was rolled back. Hours
are wall-clock time in CAPSTONE_TIMEZONE; events of videos whose recording time is unknown are counted
apart. Counts only: nobody can be known by it.""",
    group_name="summaries",
    kinds={"csv", "s3"},
    owners=OWNERS,
    tags={"compute": "cpu"},
    metadata={
        **code_of({"query": hourly_activity, "query of zones": hourly_zones}),
        **of_asset(csv_columns(_COLUMNS)),
    },
    op_tags={"batch_gpu/compute": "cpu"},
    # Without an update for a day, no video was analysed or this asset failed: operators should know.
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=timedelta(days=7), warn_window=timedelta(hours=26)
    ),
    # Neither eager() nor on_cron() fires downstream of dynamic partitions. What changes while a run is under
    # way is remembered until the next one is asked for. Not any_deps_updated(): it does not tell when, and
    # what was published between a request and the next tick would count as seen.
    automation_condition=(
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated()).since(
            dg.AutomationCondition.newly_requested()
        )
        & ~dg.AutomationCondition.in_progress()
    ).with_label("events were published"),
)
def daily_activity(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> dg.MaterializeResult[None]:
    """One query, one file, one picture."""
    zone = services.settings.timezone
    try:
        rows, without_time = services.database.transact(hourly_activity, zone=zone, days=DAYS)
        zones = services.database.transact(hourly_zones, zone=zone, days=DAYS)
        services.objects.put_bytes(ACTIVITY_FILE, as_csv(rows))
        services.objects.put_bytes(ZONES_FILE, as_csv(zones, _ZONE_COLUMNS))
    except Exception as error:
        raise as_failure(error) from error
    return dg.MaterializeResult(
        metadata={
            "events": sum(row["events"] for row in rows),
            "persons": sum(row["persons"] for row in rows),
            "cameras": len({row["camera"] for row in rows}),
            "events_on_the_last_day": _last_day(rows),
            "events_without_time": without_time,
            "timezone": zone,
            "plot": dg.MetadataValue.md(_shown(rows)),
            "table": dg.MetadataValue.md(_table(rows)),
            **of_materialization(rows=len(rows), uri=services.objects.url(ACTIVITY_FILE)),
            "csv": dg.MetadataValue.path(services.objects.url(ACTIVITY_FILE)),
            "zones": dg.MetadataValue.path(services.objects.url(ZONES_FILE)),
            "zone_visits": sum(row["visits"] for row in zones),
            "line_crossings": sum(row["in"] + row["out"] for row in zones),
        }
    )


# One run for all the videos of some minutes: uploads come in bursts, and in the cloud a run is a container.
activity_sensor = dg.AutomationConditionSensorDefinition(
    "summaries",
    target=dg.AssetSelection.assets("daily_activity"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=180,
    run_tags={"batch_gpu/compute": "cpu", PRIORITY_TAG: "-1"},
    description="Has daily_activity made again once events were published.",
)


def as_csv(rows: Sequence[Row], columns: Sequence[str] = tuple(_COLUMNS)) -> bytes:
    """The rows with a header; hours as ISO 8601."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row["camera"], row["hour"].isoformat(), *(row[name] for name in columns[2:])])
    return text.getvalue().encode()


def activity_picture(rows: Sequence[Row]) -> bytes:
    """An SVG: events of each camera by the hour of the day, and of all by the day.

    Its text stays text, so that the browser's fonts show names of cameras in any script.
    """
    # Imported here: it takes a second, which only this asset's run should spend. Without pyplot, which keeps
    # figures and looks for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    by_camera = Counter[str]()
    for row in rows:
        by_camera[row["camera"]] += row["events"]
    cameras = [camera for camera, _ in by_camera.most_common(_CAMERAS_SHOWN)]
    figure = Figure(figsize=(9, 2.6 + 0.28 * max(1, len(cameras))), dpi=80, layout="constrained")
    FigureCanvasSVG(figure)
    hours, days = figure.subplots(2, 1, height_ratios=[max(1, 0.28 * len(cameras)), 1.3])
    _draw_hours(hours, rows, cameras)
    _draw_days(days, rows)
    svg = io.BytesIO()
    # A camera's name is no formula, whatever dollar signs it has.
    with rc_context({"svg.fonttype": "none", "text.parse_math": False}), warnings.catch_warnings():
        # Its own font lacks most scripts, and is not used here.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(svg, format="svg", facecolor="white", metadata={"Date": None})
    return svg.getvalue()


def _draw_hours(axes: "Axes", rows: Sequence[Row], cameras: Sequence[str]) -> None:
    counts = [[0] * 24 for _ in cameras]
    for row in rows:
        if row["camera"] in cameras:
            counts[cameras.index(row["camera"])][row["hour"].hour] += row["events"]
    picture = axes.imshow(counts, aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(0, 24, 2))
    axes.set_yticks(range(len(cameras)), cameras)
    axes.set_title("Events by camera and hour of the day", fontsize=10, loc="left")
    colours = axes.figure.colorbar(picture, ax=axes)
    colours.ax.tick_params(labelsize=8)


def _draw_days(axes: "Axes", rows: Sequence[Row]) -> None:
    per_day = Counter[date]()
    for row in rows:
        per_day[row["hour"].date()] += row["events"]
    last = max(per_day)
    days = [last - timedelta(days=ago) for ago in reversed(range(DAYS))]
    axes.bar([f"{day:%m-%d}" for day in days], [per_day[day] for day in days], color="#31688e")
    axes.set_xticks(range(0, DAYS, 3))
    axes.set_title(f"Events by day, until {last:%Y-%m-%d}", fontsize=10, loc="left")
    axes.margins(x=0.01)


def _shown(rows: Sequence[Row]) -> str:
    if not rows:
        return "No event has a wall-clock time yet."
    picture = b64encode(activity_picture(rows)).decode("ascii")
    return f"![Events by camera and hour](data:image/svg+xml;base64,{picture})"


def _table(rows: Sequence[Row]) -> str:
    """Cameras by the last days that have events."""
    days = sorted({row["hour"].date() for row in rows})[-_DAYS_SHOWN:]
    counts = Counter[tuple[str, Any]]()
    for row in rows:
        counts[row["camera"], row["hour"].date()] += row["events"]
    lines = ["| camera | " + " | ".join(f"{day:%m-%d}" for day in days) + " |", "|---|" + "---:|" * len(days)]
    for camera in sorted({row["camera"] for row in rows}):
        lines.append(f"| {markdown(camera)} | " + " | ".join(str(counts[camera, day]) for day in days) + " |")
    return "\n".join(lines)


def _last_day(rows: Sequence[Row]) -> int:
    last = max((row["hour"].date() for row in rows), default=None)
    return sum(row["events"] for row in rows if row["hour"].date() == last)
