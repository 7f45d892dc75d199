"""Versions of the schema: each goes forward and back with data, and leaves the one before it working."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from capstone_dagster.storage import database as event_store
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.video_status import current_status
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import UPLOAD, publish

MIGRATIONS = Path(event_store.__file__).with_name("migrations")


def revisions() -> list[str]:
    """Oldest first."""
    script = ScriptDirectory(str(MIGRATIONS))
    return [each.revision for each in script.walk_revisions()][::-1]


def move(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        (at,) = connection.exec_driver_sql("SELECT version_num FROM capstone_alembic_version").one()
        step = command.downgrade if revisions().index(revision) < revisions().index(at) else command.upgrade
        step(config, revision)


def columns(database: Database) -> Mapping[str, list[Mapping[str, Any]]]:
    """Of each table and view, in order."""
    inspector = sa.inspect(database.engine)
    names = [*inspector.get_table_names("capstone"), *inspector.get_view_names("capstone")]
    return {name: [dict(each) for each in inspector.get_columns(name, "capstone")] for name in names}


def test_every_version_is_reached_from_the_newest_and_left_again_with_its_data(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database)
    before = database.transact(current_events), database.transact(current_status)
    newest = columns(database)
    for revision in reversed(revisions()):
        move(database, revision)
        move(database, revisions()[-1])
        assert (database.transact(current_events), database.transact(current_status)) == before, revision
        database.ping()
    after = columns(database)
    for name, known in newest.items():
        assert {each["name"] for each in after[name]} == {each["name"] for each in known}


@pytest.mark.parametrize(("older", "newer"), zip(revisions(), revisions()[1:], strict=False))
def test_a_worker_of_the_version_before_goes_on_beside_the_new_one(
    database: Database, older: str, newer: str
) -> None:
    """It names its columns: it needs each as it was, and no value in a column that it does not know."""
    move(database, older)
    before = columns(database)
    move(database, newer)
    after = columns(database)
    for table, known in before.items():
        now = {each["name"]: each for each in after[table]}
        for column in known:
            new = now.pop(column["name"])
            assert str(new["type"]) == str(column["type"]), (table, column["name"])
            assert new["nullable"] or not column["nullable"], (table, column["name"])
        for name, column in now.items():
            optional = column["nullable"] or column["default"] or column.get("identity")
            assert optional, f"{newer} adds {table}.{name}, which a worker of {older} does not fill"
