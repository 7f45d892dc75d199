"""`python -m capstone_dagster.storage.provision`: what a new PostgreSQL server needs an administrator for.

The databases of Dagster and of the event store, a user who owns each, the role of the consumers, and the
statistics of statements. Tables are made later, by those users: `capstone migrate`, and Dagster itself.
Safe to repeat, and repeated at each deployment: a changed password is set then.

It reads the two addresses as every other process does (DAGSTER_POSTGRES_URL, with PGPASSWORD where that names
no password; CAPSTONE_DATABASE_URL or POSTGRES_*), and makes them true; the administrator is
POSTGRES_ADMIN_USER with POSTGRES_ADMIN_PASSWORD. POSTGRES_READER_USER and POSTGRES_READER_PASSWORD name one
who reads the consumers' views.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from capstone_dagster.settings import ConfigurationError, NotConfigured, read_settings

READER = "capstone_reader"
# PostgreSQL makes it with every server, so that an administrator has somewhere to connect to.
MAINTENANCE_DATABASE = "postgres"
# Advisory locks of one user can use up the server's whole table of locks, and large objects its disk. By
# default everybody may make both; an owner keeps the right, because older versions of this project use locks.
_KEEP_FOR_OWNER = """
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace
        AND (proname LIKE 'pg%advisory%lock%' OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', function, {owner});
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
END
$$
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """A database and the user it belongs to.

    Attributes:
        is_read: consumers connect to it, as members of `capstone_reader`.
    """

    database: str
    user: str
    password: str = field(repr=False)
    is_read: bool = False


@dataclass(frozen=True, slots=True)
class Reader:
    """A user who may read the consumers' views: that of the pages of `capstone browse`."""

    user: str
    password: str = field(repr=False)


def provision(administrator: str, owners: Sequence[Owner], readers: Sequence[Reader] = ()) -> None:
    """Make the databases and their users, and set the users' passwords.

    Args:
        administrator: libpq's connection string of a user who may make databases and roles.

    Raises:
        psycopg.Error: as PostgreSQL answers.
    """
    with psycopg.connect(administrator, autocommit=True) as connection:
        databases = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for owner in owners:
            user, database = sql.Identifier(owner.user), sql.Identifier(owner.database)
            _make_user(connection, owner, exists=owner.user in roles)
            if owner.database not in databases:
                # Without being a superuser one may only give away what one may take back.
                connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(user))
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
            # Otherwise everybody who has a user on the server may connect, and fill its disk.
            connection.execute(
                sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(database)
            )
        if READER not in roles:
            # The migration grants to it, but the event store's user may not make roles.
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(READER)))
        for reader in readers:
            _make_user(connection, reader, exists=reader.user in roles)
            member = sql.SQL("GRANT {} TO {}").format(sql.Identifier(READER), sql.Identifier(reader.user))
            connection.execute(member)
        for owner in owners:
            grant = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}")
            revoke = sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}")
            names = (sql.Identifier(owner.database), sql.Identifier(READER))
            connection.execute((grant if owner.is_read else revoke).format(*names))
    for owner in owners:
        if owner.is_read:
            _restrict_readers(administrator, owner)
            _count_statements(administrator, owner)


def _count_statements(administrator: str, owner: Owner) -> None:
    """Have `capstone perf-report` find what the server counts."""
    with psycopg.connect(administrator, dbname=owner.database, autocommit=True) as connection:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported) as error:
            print(f"Slow statements will not be counted: {error}", file=sys.stderr)


def _restrict_readers(administrator: str, owner: Owner) -> None:
    """Keep from consumers what PostgreSQL lets everybody make; only a superuser can."""
    with psycopg.connect(administrator, dbname=owner.database, autocommit=True) as connection:
        connection.execute(sql.SQL(_KEEP_FOR_OWNER).format(owner=sql.Literal(owner.user)))
        may = "SELECT has_function_privilege(%s, 'lo_create(oid)', 'EXECUTE')"
        if connection.execute(may, [READER]).fetchone() == (True,):
            print(
                f"Members of {READER} can make large objects and take advisory locks: only a superuser can "
                "revoke that.",
                file=sys.stderr,
            )


def _make_user(connection: psycopg.Connection[Any], user: Owner | Reader, *, exists: bool) -> None:
    name = sql.Identifier(user.user)
    if not exists:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    # Hashed here: a server that logs its statements would log the password.
    hashed = connection.pgconn.encrypt_password(
        user.password.encode(), user.user.encode(), b"scram-sha-256"
    ).decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(hashed)))


def owners_in(environment: Mapping[str, str]) -> tuple[Owner, Owner]:
    """The owners that the addresses in the environment name: Dagster's, and the event store's.

    Raises:
        ConfigurationError: an address lacks something.
    """
    dagster = _address("DAGSTER_POSTGRES_URL", environment.get("DAGSTER_POSTGRES_URL"))
    events = _address("The event store's address", read_settings().event_store_url())
    return (
        _owner("DAGSTER_POSTGRES_URL", dagster, environment.get("PGPASSWORD")),
        replace(_owner("The event store's address", events, None), is_read=True),
    )


def readers_in(environment: Mapping[str, str]) -> list[Reader]:
    """The user that POSTGRES_READER_USER and POSTGRES_READER_PASSWORD name, if they do."""
    user, password = (environment.get(f"POSTGRES_READER_{part}") for part in ("USER", "PASSWORD"))
    return [Reader(user, password)] if user and password else []


def administrator_in(environment: Mapping[str, str]) -> str:
    """libpq's connection string of the administrator of the event store's server.

    Raises:
        NotConfigured: POSTGRES_ADMIN_USER or POSTGRES_ADMIN_PASSWORD is not set.
    """
    for name in ("POSTGRES_ADMIN_USER", "POSTGRES_ADMIN_PASSWORD"):
        if not environment.get(name):
            raise NotConfigured(f"{name} is not set: databases and users are made by an administrator.")
    server = make_url(read_settings().event_store_url())
    return psycopg.conninfo.make_conninfo(
        host=server.host,
        port=server.port,
        user=environment["POSTGRES_ADMIN_USER"],
        password=environment["POSTGRES_ADMIN_PASSWORD"],
        dbname=MAINTENANCE_DATABASE,
        connect_timeout=10,
    )


def _address(name: str, url: str | None) -> URL:
    if not url:
        raise NotConfigured(f"{name} is not set; expected postgresql+psycopg2://user@host:5432/dagster.")
    try:
        return make_url(url)
    except ArgumentError:
        raise ConfigurationError(f"{name} is no database URL.") from None


def _owner(name: str, url: URL, password: str | None) -> Owner:
    password = url.password or password
    if not url.database or not url.username or not password:
        raise ConfigurationError(f"{name} lacks its database, user or password: a new user needs all three.")
    return Owner(url.database, url.username, str(password))


def main() -> None:
    """Provision as the environment says; a failure ends in one sentence and exit code 1."""
    try:
        owners = owners_in(os.environ)
        provision(administrator_in(os.environ), owners, readers_in(os.environ))
    except (ConfigurationError, psycopg.Error) as error:
        sys.exit(f"The databases could not be made: {error}")
    print("Databases and users are in place: " + ", ".join(f"{o.database} of {o.user}" for o in owners))


if __name__ == "__main__":
    main()
