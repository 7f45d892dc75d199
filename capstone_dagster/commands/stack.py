"""`capstone demo` and `capstone dev`: the whole system on this machine."""

from __future__ import annotations

import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.options import DEFAULT_STATE, StateOption


class Compute(StrEnum):
    """Where `capstone dev` executes runs."""

    LOCAL = "local"
    BATCH = "batch"


PortOption = Annotated[
    int, typer.Option("--port", envvar="CAPSTONE_UI_PORT", min=1, max=65535, help="Port of the Dagster UI.")
]


def demo(
    video: Annotated[
        Path | None, typer.Argument(help="Your own video; without one, a clip made from two photographs.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
    port: PortOption = 3000,
) -> None:
    """Analyse one video on this machine, from upload to events, and stop.

    Starts PostgreSQL, an AWS emulator and Dagster (or uses those of a running `capstone dev`), uploads the
    video to the local S3, and waits until its events are in PostgreSQL.

    Example: `capstone demo my-video.mp4`
    """
    from capstone_dagster.local.demo import run_demo

    run_demo(video, state.resolve(), port)


def dev(
    state: StateOption = DEFAULT_STATE,
    port: PortOption = 3000,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete all data of earlier stacks first.")] = False,
    browse_port: Annotated[
        int,
        typer.Option(
            envvar="CAPSTONE_BROWSE_PORT",
            min=1,
            max=65535,
            help="Port of the pages of `capstone browse`; another one if it is taken.",
        ),
    ] = 3080,
    compute: Annotated[
        Compute,
        typer.Option(
            help="Where runs execute: as processes here, or as jobs of a fake AWS Batch, as in the cloud."
        ),
    ] = Compute.LOCAL,
    observe: Annotated[
        bool,
        typer.Option(
            "--observe",
            help="Also run Prometheus, Alertmanager and exporters, as far as they are installed here.",
        ),
    ] = False,
) -> None:
    """Run the local stack with the Dagster UI and the pages of events until Ctrl-C.

    Example: `capstone dev --port 3001`
    """
    from capstone_dagster.local.cloud import fake_batch
    from capstone_dagster.local.demo import model_of, prepare
    from capstone_dagster.local.observing import Observers, start_observers
    from capstone_dagster.local.stack import LocalStack, join_environment, local_stack

    observers = Observers()

    with ExitStack() as running:

        def before_dagster(stack: LocalStack) -> None:
            nonlocal observers
            prepare(stack)
            if observe:
                observers = start_observers(stack.state, join_environment(stack.environment))
                running.callback(observers.stop)
                links = ",".join(f"{name}={url}" for name, url in observers.links.items())
                stack.environment["CAPSTONE_OBSERVER_URLS"] = links
            if compute is Compute.BATCH:
                running.enter_context(fake_batch(stack))

        with terminal.progress("Starting the local stack") as report:
            stack = running.enter_context(
                local_stack(
                    state.resolve(),
                    webserver_port=port,
                    browse_port=browse_port,
                    fresh=fresh,
                    before_dagster=before_dagster,
                    on_progress=report,
                )
            )
        assert stack.dagster is not None
        terminal.out.print(f"Dagster UI   {stack.dagster.url}")
        terminal.say(f"Browse       {stack.environment['CAPSTONE_BROWSE_URL']}")
        for name, url in observers.links.items():
            terminal.out.print(f"{name:<12} {url}")
        if observers.missing:
            terminal.say(f"Not there    {', '.join(observers.missing)} (Debian: apt-get install)")
        terminal.say(f"Logs         {stack.logs}")
        if compute is Compute.BATCH:
            terminal.out.print(f"AWS Batch    {stack.environment['AWS_ENDPOINT_URL_BATCH']} (fake)")
        terminal.say(f"Model        {model_of(stack.environment)}")
        terminal.out.print("Try, in another terminal:")
        terminal.out.print("             .venv/bin/capstone submit my-video.mp4")
        terminal.out.print("             .venv/bin/capstone status")
        terminal.out.print("             .venv/bin/capstone events")
        terminal.out.print("Ctrl-C stops everything.")
        try:
            while True:
                stack.check()
                time.sleep(1)
        except KeyboardInterrupt:
            # The normal end: not a failure, also for make.
            terminal.err.print("Stopping …")
