"""The daemon's first container makes a new server ready, as an administrator who is no superuser (as on RDS),
and does it again at each deployment.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.errors import PermissionDenied
from capstone_dagster.web import reading
from tests.infra.stacks import template
from tests.infra.test_environment import given
from tests.support.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]
ADMINISTRATOR_PASSWORD = "of the administrator"


@pytest.fixture
def environment(postgres: PostgresServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the container finds, on a server whose administrator may make databases and roles, and no more."""
    suffix = uuid4().hex[:8]
    names = ("admin", "dagster", "events", "reader")
    admin, dagster, events, reader = (f"{name}_{suffix}" for name in names)
    superuser = postgres.url(EVENT_DATABASE, "psycopg").replace("+psycopg", "", 1)
    server = make_url(superuser)
    (tmp_path / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}").format(
                sql.Identifier(admin), ADMINISTRATOR_PASSWORD
            )
        )
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'capstone_reader'").fetchone():
            # Other tests' databases share the role; on a server of its own this administrator has made it.
            connection.execute(
                sql.SQL("GRANT capstone_reader TO {} WITH ADMIN OPTION").format(sql.Identifier(admin))
            )
        yield {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(tmp_path),
            "PYTHONWARNINGS": "ignore",
            "DAGSTER_HOME": str(tmp_path),
            "AWS_REGION": "ap-northeast-2",
            "AWS_DEFAULT_REGION": "ap-northeast-2",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "CAPSTONE_COMPUTE": "batch",
            "CAPSTONE_LOG_BUCKET": "logs",
            "CAPSTONE_GPU_QUEUE": "capstone-gpu",
            "CAPSTONE_GPU_JOB_DEFINITION": "capstone-gpu",
            "CAPSTONE_CPU_QUEUE": "capstone-cpu",
            "CAPSTONE_CPU_JOB_DEFINITION": "capstone-cpu",
            "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{dagster}@{server.host}:{server.port}/{dagster}",
            "PGPASSWORD": "of Dagster",
            "POSTGRES_HOST": str(server.host),
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": events,
            "POSTGRES_USER": events,
            "POSTGRES_PASSWORD": "of/the event@store",
            "POSTGRES_ADMIN_USER": admin,
            "POSTGRES_ADMIN_PASSWORD": ADMINISTRATOR_PASSWORD,
            "POSTGRES_READER_USER": reader,
            "POSTGRES_READER_PASSWORD": "of the reader",
        }
        for name in (dagster, events):
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
        for name in (dagster, events, reader, admin):
            # What the administrator made may be granted on; the role itself may be missing.
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
                connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(150),
    )


def prepare() -> list[str]:
    [container, *_] = template("application")["Resources"]["DaemonTask"]["Properties"]["ContainerDefinitions"]
    return [*container["EntryPoint"], *container["Command"]]


def connect(environment: Mapping[str, str], user: str, password: str, database: str) -> None:
    psycopg.connect(
        host=environment["POSTGRES_HOST"],
        port=environment["POSTGRES_PORT"],
        user=user,
        password=password,
        dbname=database,
    ).close()


def test_the_container_that_prepares_makes_everything_and_may_do_so_again(
    environment: dict[str, str],
) -> None:
    assert {name for name in environment if name.startswith(("POSTGRES_", "PG", "DAGSTER_"))} <= given(
        "prepare"
    )
    first = run(prepare(), environment)
    assert first.returncode == 0, first.stdout + first.stderr
    second = run(prepare(), environment)
    assert second.returncode == 0, second.stdout + second.stderr

    # As the services connect: Dagster with its password beside the address, the event store with its own.
    dagster, events = make_url(environment["DAGSTER_POSTGRES_URL"]), environment["POSTGRES_USER"]
    with psycopg.connect(
        host=dagster.host,
        port=dagster.port,
        user=dagster.username,
        password="of Dagster",
        dbname=dagster.database,
    ) as connection:
        limit = connection.execute(
            "SELECT \"limit\" FROM concurrency_limits WHERE concurrency_key = 'gpu'"
        ).fetchone()
        assert limit == (1000,), "with AWS Batch its environments bound the GPUs"
    url = f"postgresql+psycopg://{events}:of%2Fthe%20event%40store@{dagster.host}:{dagster.port}/{events}"
    database = Database(url)
    database.ping()
    database.close()

    # As the pages of events connect: they see the views, and no table.
    url = f"postgresql+psycopg://{environment['POSTGRES_READER_USER']}:of%20the%20reader@{url.split('@')[1]}"
    reader = Database(url, reader=True)
    with reader.transaction() as connection:
        assert reading.cameras(connection) == []
    with pytest.raises(PermissionDenied), reader.transaction() as connection:
        connection.exec_driver_sql("SELECT * FROM capstone.events")
    reader.close()


def test_users_have_their_own_database_and_no_other(environment: dict[str, str]) -> None:
    done = run([sys.executable, "-m", "capstone_dagster.storage.provision"], environment)
    assert done.returncode == 0, done.stderr
    dagster, events = make_url(environment["DAGSTER_POSTGRES_URL"]).database, environment["POSTGRES_DB"]
    assert dagster is not None
    connect(environment, dagster, "of Dagster", dagster)
    connect(environment, events, "of/the event@store", events)

    for user, password, other in ((dagster, "of Dagster", events), (events, "of/the event@store", dagster)):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            connect(environment, user, password, other)


@pytest.mark.parametrize("superuser", [False, True])
def test_consumers_make_neither_large_objects_nor_advisory_locks_where_a_superuser_provisions(
    environment: dict[str, str], postgres: PostgresServer, superuser: bool
) -> None:
    server = postgres.url(EVENT_DATABASE, "psycopg").replace("+psycopg", "", 1)
    with psycopg.connect(server, autocommit=True) as connection:
        if superuser:
            connection.execute(f"ALTER ROLE {environment['POSTGRES_ADMIN_USER']} SUPERUSER")
    done = run([sys.executable, "-m", "capstone_dagster.storage.provision"], environment)
    assert done.returncode == 0, done.stderr
    assert ("make large objects" in done.stderr) is not superuser
    events = environment["POSTGRES_USER"]
    with psycopg.connect(server, dbname=events, autocommit=True) as connection:
        for user, allowed in (("capstone_reader", not superuser), (events, True)):
            for function in ("lo_create(oid)", "pg_advisory_lock(bigint)", "pg_try_advisory_lock(int, int)"):
                may = "SELECT has_function_privilege(%s, %s, 'EXECUTE')"
                assert connection.execute(may, [user, function]).fetchone() == (allowed,), (user, function)


def test_a_changed_password_is_set(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "capstone_dagster.storage.provision"]
    assert run(command, environment).returncode == 0
    events = environment["POSTGRES_USER"]

    assert run(command, {**environment, "POSTGRES_PASSWORD": "another"}).returncode == 0

    connect(environment, events, "another", events)
    with pytest.raises(psycopg.OperationalError, match="password"):
        connect(environment, events, "of/the event@store", events)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("POSTGRES_ADMIN_USER", "POSTGRES_ADMIN_USER is not set"),
        ("POSTGRES_ADMIN_PASSWORD", "POSTGRES_ADMIN_PASSWORD is not set"),
        ("PGPASSWORD", "DAGSTER_POSTGRES_URL lacks its database, user or password"),
        ("DAGSTER_POSTGRES_URL", "DAGSTER_POSTGRES_URL is not set"),
        ("POSTGRES_HOST", "No event store is configured"),
    ],
)
def test_what_is_missing_is_named(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from capstone_dagster.settings import ConfigurationError
    from capstone_dagster.storage.provision import administrator_in, owners_in

    complete = {
        "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://dagster@db:5432/dagster",
        "PGPASSWORD": "a",
        "POSTGRES_HOST": "db",
        "POSTGRES_PASSWORD": "b",
        "POSTGRES_ADMIN_USER": "c",
        "POSTGRES_ADMIN_PASSWORD": "d",
    }
    for name, value in complete.items():
        if name != missing:
            monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=message):
        (owners_in(os.environ), administrator_in(os.environ))


def test_no_password_is_shown_or_sent_plainly(environment: dict[str, str], postgres: PostgresServer) -> None:
    done = run([sys.executable, "-m", "capstone_dagster.storage.provision"], environment)

    assert "of Dagster" not in done.stdout + done.stderr
    with psycopg.connect(postgres.url(EVENT_DATABASE, "psycopg").replace("+psycopg", "", 1)) as connection:
        kept = connection.execute(
            "SELECT passwd FROM pg_shadow WHERE usename = %s", [environment["POSTGRES_USER"]]
        ).fetchone()
    assert kept is not None
    assert kept[0].startswith("SCRAM-SHA-256$")
