"""Everything that this project uses of Dagster's private modules, read in dagster 1.13.27.

Dagster may change these without notice: check each of them when you raise its version.
"""

from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.event_api import RunStatusChangeEventType
from dagster._core.events import AssetObservationData, JobFailureData, RunFailureReason
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.execution.context.output import RUN_ID_PLACEHOLDER
from dagster._core.execution.plan.objects import ErrorSource, StepFailureData
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.stats import RunStepKeyStatsSnapshot
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.snap import snapshot_from_execution_plan
from dagster._core.storage.compute_log_manager import CapturedLogContext, CapturedLogMetadata, ComputeIOType
from dagster._core.storage.dagster_run import DagsterRunStatsSnapshot
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.runs.schema import (
    BulkActionsTable,
    DaemonHeartbeatsTable,
    KeyValueStoreTable,
    RunsTable,
    RunTagsTable,
)
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.schedules.schema import (
    AssetDaemonAssetEvaluationsTable,
    InstigatorsTable,
    JobTable,
    JobTickTable,
)
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
    BACKFILL_TAGS,
    PARENT_BACKFILL_ID_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    RUN_FAILURE_REASON_TAG,
    RUN_KEY_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY,
)
from dagster._core.utils import make_new_backfill_id
from dagster._serdes import ConfigurableClassData, deserialize_value, serialize_value
from dagster_shared.error import SerializableErrorInfo

__all__ = [
    "ASSET_PARTITION_RANGE_END_TAG",
    "ASSET_PARTITION_RANGE_START_TAG",
    "BACKFILL_ID_TAG",
    "BACKFILL_TAGS",
    "IMPLICIT_ASSET_JOB_NAME",
    "PARENT_BACKFILL_ID_TAG",
    "PARENT_RUN_ID_TAG",
    "PARTITION_NAME_TAG",
    "PRIORITY_TAG",
    "RESUME_RETRY_TAG",
    "ROOT_RUN_ID_TAG",
    "RUN_FAILURE_REASON_TAG",
    "RUN_ID_PLACEHOLDER",
    "RUN_KEY_TAG",
    "TAGS_TO_MAYBE_OMIT_ON_RETRY",
    "AssetCheckEvaluationTargetMaterializationData",
    "AssetCheckExecutionsTable",
    "AssetDaemonAssetEvaluationsTable",
    "AssetEventTagsTable",
    "AssetKeyTable",
    "AssetObservationData",
    "BulkActionStatus",
    "BulkActionsTable",
    "CapturedLogContext",
    "CapturedLogMetadata",
    "ComputeIOType",
    "ConfigurableClassData",
    "DaemonHeartbeatsTable",
    "DagsterRunAlreadyExists",
    "DagsterRunStatsSnapshot",
    "ErrorSource",
    "InstigatorState",
    "InstigatorStatus",
    "InstigatorType",
    "InstigatorsTable",
    "JobFailureData",
    "JobTable",
    "JobTickTable",
    "KeyValueStoreTable",
    "KnownExecutionState",
    "PartitionBackfill",
    "RunFailureReason",
    "RunStatusChangeEventType",
    "RunStepKeyStatsSnapshot",
    "RunTagsTable",
    "RunsTable",
    "SensorInstigatorData",
    "SerializableErrorInfo",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "SqlRunStorage",
    "SqlScheduleStorage",
    "StepFailureData",
    "TickData",
    "TickStatus",
    "create_execution_plan",
    "deserialize_value",
    "make_new_backfill_id",
    "serialize_value",
    "snapshot_from_execution_plan",
]
