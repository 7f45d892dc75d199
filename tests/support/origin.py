"""Where a run's definitions were found, for runs that tests make: without it Dagster queues none."""

from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

_LOCATION = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="m")
REMOTE_ORIGIN = RemoteRepositoryOrigin(_LOCATION, "__repository__").get_job_origin("analyze_upload")
CODE_ORIGIN = JobPythonOrigin(
    "analyze_upload",
    RepositoryPythonOrigin("python", ModuleCodePointer("m", "defs", working_directory=None)),
)
