"""The whole system on this machine: PostgreSQL, AWS emulator, Dagster, started and stopped together."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import capstone_dagster
from batch_gpu.gpus import gpu_count
from capstone_dagster.local.aws import (
    DERIVED_BUCKET,
    AwsEmulator,
    AwsResources,
    aws_environment,
    client,
    create_resources,
    ministack_server,
)
from capstone_dagster.local.awslogs import awslogs
from capstone_dagster.local.dagster_services import (
    STORAGE_TABLES,
    UI_PORT,
    UI_PORT_VARIABLE,
    DagsterServices,
    create_storage,
    end_lost_runs,
    require_free_ui_port,
    set_gpu_pool,
    start_dagster,
)
from capstone_dagster.local.errors import LocalStackError
from capstone_dagster.local.pages import start_pages
from capstone_dagster.local.postgres import DAGSTER_DATABASE, EVENT_DATABASE, PostgresServer, postgres_server
from capstone_dagster.local.processes import LOOPBACK, ChildProcess, free_port
from capstone_dagster.local.state import clear_state, own_state, remove_environment, write_environment

STATE_FOLDER = ".capstone"
GPU_POOL = "gpu"
# Variables for the real AWS or another database (profiles, session tokens, roles, libpq's defaults, the
# parts of a database URL) must not reach a process of the local stack.
FOREIGN_PREFIXES = ("AWS_", "PG", "POSTGRES_")
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class DagsterFiles:
    """The two files that configure Dagster; in the repository's root unless a test brings its own."""

    workspace: Path
    instance: Path


@dataclass
class LocalStack:
    """A running stack."""

    state: Path
    environment: dict[str, str] = field(repr=False)
    """Every variable that a client of this stack needs; `join_environment` applies it."""
    postgres: PostgresServer
    aws: AwsEmulator
    resources: AwsResources
    dagster: DagsterServices | None = None
    pages: ChildProcess | None = None

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def check(self) -> None:
        """Raise `ProcessEndedError`, with the last log lines, if a process of the stack ended."""
        self.postgres.process.check()
        self.aws.process.check()
        if self.dagster is not None:
            self.dagster.check()
        if self.pages is not None:
            self.pages.check()


@contextmanager
def local_stack(
    state: Path | None = None,
    *,
    webserver_port: int | None = UI_PORT,
    browse_port: int | None = None,
    with_dagster: bool = True,
    dagster_files: DagsterFiles | None = None,
    fresh: bool = False,
    before_dagster: Callable[[LocalStack], None] = lambda _: None,
    on_progress: OnProgress = lambda _: None,
) -> Iterator[LocalStack]:
    """Run the stack for the length of the block.

    Args:
        state: where everything it remembers lives; the repository's `.capstone` by default.
        webserver_port: the Dagster UI's port; None takes a free one.
        browse_port: serve the pages of `capstone browse` on this port, or on a free one if it is taken; None
            serves none.
        with_dagster: False starts PostgreSQL and the emulator only.
        fresh: delete what earlier stacks left in `state` first.
        before_dagster: called when the databases and resources exist and Dagster does not run yet: the
            place for migrations and pool limits.
        on_progress: called with a sentence at each step.

    Raises:
        LocalStackError: one of its kinds (errors.py); everything that was started is stopped by then.
    """
    files = dagster_files or repository_files()
    state = (state or files.workspace.parent / STATE_FOLDER).resolve()
    with ExitStack() as running:
        lock = running.enter_context(own_state(state))
        if fresh:
            clear_state(state)
        running.callback(remove_environment, state)
        ui_port = free_port() if webserver_port is None else webserver_port
        if with_dagster:
            require_free_ui_port(ui_port)  # before anything that takes time
        clock = time.monotonic()

        def report(what: str) -> None:
            on_progress(f"{what} ({time.monotonic() - clock:.1f} s)")

        postgres = running.enter_context(
            postgres_server(state / "postgres", state / "logs" / "postgres.log", keep_open=[lock])
        )
        report(f"PostgreSQL is ready on port {postgres.port}")
        aws = running.enter_context(
            ministack_server(state / "aws", state / "logs" / "aws.log", keep_open=[lock])
        )
        resources = create_resources(aws.endpoint_url)
        report(f"S3, SQS, SNS and CloudWatch Logs are ready at {aws.endpoint_url}")
        home = _dagster_home(state, files.instance)
        environment = {
            "CAPSTONE_UI_URL": f"http://{LOOPBACK}:{ui_port}",  # for links in notices
            **_environment(postgres, aws, resources, home),
            UI_PORT_VARIABLE: str(ui_port),
            "CAPSTONE_METRICS_COLLECTOR": f"{LOOPBACK}:{free_port()}",  # of UDP; a taken one costs the counts
        }
        if browse_port is not None:
            environment["CAPSTONE_BROWSE_URL"] = f"http://{LOOPBACK}:{free_port(browse_port)}"
        stack = LocalStack(state, environment, postgres, aws, resources)
        write_environment(state, stack.environment)
        before_dagster(stack)
        if with_dagster:
            ready_storage(stack, files, report)
            joined = join_environment(stack.environment)
            # Stops after Dagster, whose last lines it carries, and starts after it: nothing waits for it.
            carrying = running.enter_context(ExitStack())
            stack.dagster = start_dagster(
                files.workspace,
                joined,
                stack.logs,
                port=ui_port,
                keep_open=[lock],
                on_progress=on_progress,
            )
            running.callback(stack.dagster.stop)
            report(f"Dagster is ready at {stack.dagster.url}")
            clients = {service: client(service, aws.endpoint_url) for service in ("logs", "cloudwatch")}
            carrying.enter_context(awslogs(stack.logs, clients))
            if browse_port is not None:
                stack.pages = start_pages(joined, stack.logs, [lock])
                running.callback(stack.pages.stop)
        try:
            yield stack
        finally:
            on_progress("Stopping")


def ready_storage(stack: LocalStack, files: DagsterFiles, report: OnProgress) -> None:
    """Prepare Dagster's storage for a daemon: tables, no lost runs, a pool limit."""
    joined = join_environment(stack.environment)

    def stored(query: str, *parameters: Any) -> Any:
        return stack.postgres.value(DAGSTER_DATABASE, query, *parameters)

    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s)"
    if stored(tables, list(STORAGE_TABLES)) < len(STORAGE_TABLES):
        create_storage(files.instance, joined)
        report("Dagster's storage is made")
    elif lost := stored("SELECT count(*) FROM runs WHERE status IN ('STARTING', 'STARTED', 'CANCELING')"):
        end_lost_runs(files.instance, joined)
        report(f"{lost} runs that an earlier stop cut off are marked as failed, to be tried again")
    limit = stored('SELECT "limit" FROM concurrency_limits WHERE concurrency_key = %s', GPU_POOL)
    if limit not in _right_limits(files, joined["CAPSTONE_COMPUTE"]):
        set_gpu_pool(files.instance, joined)
        report("The GPU pool's limit is set")


def _right_limits(files: DagsterFiles, compute: str) -> set[int | None]:
    """Limits of the GPU pool that need no change: setting the right one takes seconds (`batch_gpu.pool`)."""
    if compute != "local":
        return set()
    config = yaml.safe_load(files.instance.read_text()).get("run_launcher", {}).get("config", {})
    limit = max(1, gpu_count()) * config.get("runs_per_gpu", 1)
    return {limit}  # with none set, Dagster's queue takes its first runs without any


def join_environment(environment: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The complete environment of a process that works with the stack: `base` (this process's by default)
    without what belongs to the real AWS or another database, plus the stack's variables."""
    base = os.environ if base is None else base
    kept = {name: value for name, value in base.items() if not name.startswith(FOREIGN_PREFIXES)}
    # boto3 and urllib would send requests for 127.0.0.1 to a company's proxy.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, [kept.get(name), LOOPBACK, "localhost"]))
    return {**kept, **environment}


def enter_environment(environment: Mapping[str, str], target: MutableMapping[str, str] = os.environ) -> None:
    """Make this process itself a client of the stack."""
    joined = join_environment(environment, target)
    target.clear()
    target.update(joined)


def repository_files() -> DagsterFiles:
    """The checkout's own dagster.yaml and workspace.yaml.

    Raises:
        LocalStackError: this is no checkout.
    """
    package = Path(capstone_dagster.__file__).resolve().parent
    for root in (package.parent, Path.cwd()):
        files = DagsterFiles(root / "workspace.yaml", root / "dagster.yaml")
        if files.workspace.exists() and files.instance.exists():
            return files
    raise LocalStackError(
        "The local stack runs in a checkout of the repository: workspace.yaml and dagster.yaml are neither "
        f"in {package.parent} nor in {Path.cwd()}. Change to the checkout and start again."
    )


def _dagster_home(state: Path, instance: Path) -> Path:
    """Dagster reads dagster.yaml from its home: a link there keeps the repository's file the only one."""
    home = state / "dagster"
    home.mkdir(exist_ok=True)
    link = home / "dagster.yaml"
    link.unlink(missing_ok=True)
    link.symlink_to(instance.resolve())
    return home


def _environment(
    postgres: PostgresServer, aws: AwsEmulator, resources: AwsResources, home: Path
) -> dict[str, str]:
    """The stack's variables, over the CAPSTONE_* ones that the user exported to tune it."""
    exported = {name: value for name, value in os.environ.items() if name.startswith("CAPSTONE_")}
    return {
        "CAPSTONE_METRICS": "emf",
        **exported,
        **aws_environment(aws.endpoint_url),
        "CAPSTONE_ENVIRONMENT": "local",
        "CAPSTONE_COMPUTE": "local",
        # dagster.yaml names them in either place; a fake AWS Batch on this machine has them.
        "CAPSTONE_GPU_QUEUE": "capstone-gpu",
        "CAPSTONE_GPU_JOB_DEFINITION": "capstone-gpu",
        "CAPSTONE_CPU_QUEUE": "capstone-cpu",
        "CAPSTONE_CPU_JOB_DEFINITION": "capstone-cpu",
        "CAPSTONE_QUEUE_URL": resources.queue_url,
        "CAPSTONE_RAW_BUCKET": resources.raw_bucket,
        "CAPSTONE_DERIVED_URL": resources.derived_url,
        "CAPSTONE_ALERT_TOPIC_ARN": resources.alert_topic_arn,
        "CAPSTONE_NOTICE_TOPIC_ARN": resources.notice_topic_arn,
        "CAPSTONE_DATABASE_URL": postgres.url(EVENT_DATABASE, "psycopg"),
        "DAGSTER_POSTGRES_URL": postgres.url(DAGSTER_DATABASE, "psycopg2"),
        "DAGSTER_HOME": str(home),
        "CAPSTONE_LOG_BUCKET": DERIVED_BUCKET,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "PYTHONUNBUFFERED": "1",  # logs are complete even when a process is killed
    }
