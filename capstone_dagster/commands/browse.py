"""`capstone browse`: events in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from capstone_dagster import terminal
from capstone_dagster.commands.joining import join_local_stack, read_settings
from capstone_dagster.commands.options import DEFAULT_STATE, StateOption


def browse(
    port: Annotated[
        int,
        typer.Option("--port", envvar="CAPSTONE_BROWSE_PORT", min=1, max=65535, help="Port of the pages."),
    ] = 3080,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; anything but loopback needs a sign-in before it."),
    ] = "127.0.0.1",
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Show events, videos and uploads in a browser, until Ctrl-C.

    It reads the event store's views as the role capstone_reader. Pictures and videos go from the object store
    to the browser, by addresses that expire after minutes. `capstone dev` starts it, too.

    Example: `capstone browse --port 3080`
    """
    import uvicorn

    from capstone_dagster.clients import signing_client
    from capstone_dagster.commands.joining import object_store
    from capstone_dagster.storage.database import Database
    from capstone_dagster.web.application import create_app
    from capstone_dagster.web.site import Site

    join_local_stack(state)
    settings = read_settings()
    site = Site(
        settings=settings,
        database=Database(settings.event_store_url(), reader=True),
        objects=object_store(),
        s3=signing_client(),
    )
    shown = f"[{host}]" if ":" in host else host
    terminal.say(f"Browse       http://{shown}:{port}")
    uvicorn.run(create_app(site), host=host, port=port, log_level="warning", server_header=False)
