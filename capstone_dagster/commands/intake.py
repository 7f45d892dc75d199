"""`capstone intake`: shows whether uploads are taken from the queue, pauses and resumes it."""

from __future__ import annotations

import getpass
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import dagster_instance, join_local_stack
from capstone_dagster.commands.options import DEFAULT_STATE, ByOption, JsonOption, StateOption
from capstone_dagster.commands.sections import Sections

if TYPE_CHECKING:
    import dagster as dg

    from capstone_dagster.failures.breaker_state import BreakerState
    from capstone_dagster.intake.orders import Order

# A tick that waits for messages takes 20 s, and the next one begins some seconds later.
_FOLLOWED_WITHIN_S = 45.0
_POLL_S = 0.5

app = typer.Typer(
    cls=Sections,
    no_args_is_help=True,
    help="Whether uploads are taken from the queue. Intake pauses itself while runs fail for one systemic "
    "reason, and resumes automatically; an operator's order takes precedence.",
)
Why = Annotated[str, typer.Option("--why", help="The reason, for later readers.")]


@app.command("status")
def intake_status(
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show whether intake runs or is paused, why, since when, and when the next probe is due.

    Example: `capstone intake status --json`
    """
    from capstone_dagster.commands.dagster_tables import read_intake
    from capstone_dagster.failures.breaker_state import describe

    join_local_stack(state)
    breaker, order = read_intake()
    if as_json:
        terminal.print_json({**asdict(breaker), "paused": breaker.paused})
        return
    print(describe(breaker))
    if order is not None and order.at > breaker.order_at:
        _note_unfollowed(order)


@app.command("pause")
def intake_pause(
    why: Why = "no reason given", by: ByOption = None, state: StateOption = DEFAULT_STATE
) -> None:
    """Leave new uploads in the queue until `capstone intake resume`. Runs continue.

    Example: `capstone intake pause --why "new image"`
    """
    _order("pause", why, by, state)


@app.command("resume")
def intake_resume(
    why: Why = "no reason given", by: ByOption = None, state: StateOption = DEFAULT_STATE
) -> None:
    """Resume intake after an automatic or a manual pause. Failures are counted from zero.

    Example: `capstone intake resume --why mended`
    """
    _order("resume", why, by, state)


def _order(wanted: Literal["pause", "resume"], why: str, by: str | None, state: Path) -> None:
    from capstone_dagster.failures.breaker_state import describe
    from capstone_dagster.intake.orders import give_order

    with dagster_instance(state) as instance:
        order = give_order(instance, wanted, by=by or getpass.getuser(), why=why)
        with terminal.progress("Waiting for intake's next tick"):
            breaker = _followed(instance, order)
    if breaker is None:
        _note_unfollowed(order)
    else:
        print(describe(breaker))


def _followed(instance: dg.DagsterInstance, order: Order) -> BreakerState | None:
    """The breaker after a tick followed the order; None if none did in time."""
    from capstone_dagster.failures.breaker_state import BREAKER

    give_up = time.monotonic() + _FOLLOWED_WITHIN_S
    while time.monotonic() < give_up:
        breaker = BREAKER.read(instance)
        if breaker.order_at >= order.at:
            return breaker
        time.sleep(_POLL_S)
    return None


def _note_unfollowed(order: Order) -> None:
    terminal.note(
        f"The order of {order.by} to {order.wanted} ({order.why}) is stored; no tick has followed it yet: "
        "does the daemon run, and is the sensor upload_sensor on?"
    )
