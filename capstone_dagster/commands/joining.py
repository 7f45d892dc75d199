"""How a command finds the stack that it works with: the environment's, else the one that runs here.

What is imported here is imported for each `--help`: the rest where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from capstone_dagster.settings import Settings
    from capstone_dagster.storage.database import Database
    from capstone_dagster.storage.objects import ObjectStore

START_STACK = "Locally: start the stack with `make dev`, and try again from a second terminal."
_SUFFICIENT = ("CAPSTONE_DATABASE_URL", "POSTGRES_HOST", "CAPSTONE_QUEUE_URL")


def read_settings(**overrides: Any) -> Settings:
    """The settings of the environment; `join_local_stack` comes first.

    Raises:
        ConfigurationError: one is wrong.
    """
    from capstone_dagster.settings import read_settings

    return read_settings(**overrides)


def join_local_stack(state: Path) -> Mapping[str, str] | None:
    """Without a database and a queue in the environment, work with the local stack that runs on `state`.

    Returns:
        The variables of that stack; None if the environment's settings count, or no stack runs.
    """
    # A command's standard output is its result, which no line of metrics may stand between.
    os.environ["CAPSTONE_METRICS"] = "off"
    if any(os.environ.get(name) for name in _SUFFICIENT):
        return None
    # Packages of the local stack, which an installation for the cloud goes without.
    from capstone_dagster.local.stack import enter_environment
    from capstone_dagster.local.state import read_environment

    environment = read_environment(state.resolve())
    if environment is not None:
        enter_environment({**environment, "CAPSTONE_METRICS": "off"})
    return environment


def open_database(state: Path) -> Database:
    """The event store of the stack or environment that a command works with."""
    from capstone_dagster.storage.database import Database

    join_local_stack(state)
    return Database(read_settings().event_store_url())


@contextmanager
def dagster_instance(state: Path) -> Iterator[dg.DagsterInstance]:
    """Dagster's own records, of the stack or environment that a command works with.

    Raises:
        NotConfigured: DAGSTER_HOME is not set.
    """
    from capstone_dagster.settings import NotConfigured

    join_local_stack(state)
    if not os.environ.get("DAGSTER_HOME"):
        raise NotConfigured(
            "DAGSTER_HOME is not set: runs and intake's state lie in Dagster's storage. Point it to the "
            "folder that holds dagster.yaml, and set what that file names."
        )
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        yield instance


def repository() -> dg.RepositoryDefinition:
    """The definitions of this project, for runs that a command makes; importing them takes a second."""
    from capstone_dagster.definitions import defs

    return defs.get_repository_def()


def object_store() -> ObjectStore:
    """The store of derived objects, once the stack is joined."""
    from capstone_dagster.clients import aws_client
    from capstone_dagster.storage.objects import open_object_store

    return open_object_store(read_settings().required("derived_url"), lambda: aws_client("s3"))
