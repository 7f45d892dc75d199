"""Job-definition revisions for what SubmitJob cannot override: the image, secrets, shared memory.

A revision is a job definition of its own, named by the hash of its content, so that the first run
that needs it registers it, and all others find it.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from batch_gpu.aws import BatchApi
from batch_gpu.config import JobConfig
from batch_gpu.errors import ConfigurationError

# How long a configured definition's content is believed: a deployment that registers a new revision reaches
# the runs that vary it within this time.
BASE_LIFETIME_S = 300.0
# What both DescribeJobDefinitions and RegisterJobDefinition have.
_KEPT = (
    "type",
    "parameters",
    "schedulingPriority",
    "containerProperties",
    "retryStrategy",
    "propagateTags",
    "timeout",
    "tags",
    "platformCapabilities",
)


class JobDefinitions:
    """The job definition for each run. Safe to share between threads."""

    def __init__(self, api: BatchApi, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._bases: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._tagged: dict[str, tuple[float, Mapping[str, str]]] = {}
        self._revisions: dict[str, str] = {}
        self._lock = threading.Lock()

    def for_job(self, job: JobConfig) -> str:
        """The name or ARN to submit with; makes no request unless the job needs a revision.

        Raises:
            ConfigurationError: the configured definition does not exist, or is not a single container's.
        """
        definition = job.job_definition
        assert definition is not None  # LauncherConfig.job has seen to it
        if job.image is None and not (job.secrets or job.secrets_tag) and job.shared_memory_mib is None:
            return definition
        with self._lock:
            if job.secrets_tag is not None:
                job = JobConfig(secrets=dict(self._secrets(job.secrets_tag))).merged(job)
            revision = varied(self._base(definition), job)
            name = revision["jobDefinitionName"]
            if name not in self._revisions:
                self._revisions[name] = self._find(name) or self._register(revision)
            return self._revisions[name]

    def _base(self, configured: str) -> Mapping[str, Any]:
        read_at, base = self._bases.get(configured, (0.0, {}))
        if not base or self._clock() - read_at > BASE_LIFETIME_S:
            by_name = ":" not in configured
            wanted = {"jobDefinitionName": configured} if by_name else {"jobDefinitions": [configured]}
            known = self._latest(**({"status": "ACTIVE"} if by_name else {}), **wanted)
            if known is None:
                raise ConfigurationError(
                    f"The job definition {configured!r} does not exist or is not active. Correct "
                    "job_definition, or register it."
                )
            base = known
            self._bases[configured] = (self._clock(), base)
        return base

    def _secrets(self, tag: str) -> Mapping[str, str]:
        read_at, secrets = self._tagged.get(tag, (-BASE_LIFETIME_S, {}))
        if self._clock() - read_at >= BASE_LIFETIME_S:
            secrets = self._api.tagged_secrets(tag)
            self._tagged[tag] = (self._clock(), secrets)
        return secrets

    def _find(self, name: str) -> str | None:
        known = self._latest(jobDefinitionName=name, status="ACTIVE")
        return None if known is None else str(known["jobDefinitionArn"])

    def _latest(self, **wanted: Any) -> Mapping[str, Any] | None:
        # An answer has at most 100 revisions, and their order is not documented.
        revisions = self._api.pages("batch", "describe_job_definitions", "jobDefinitions", **wanted)
        return max(revisions, key=lambda each: int(each["revision"]), default=None)

    def _register(self, revision: Mapping[str, Any]) -> str:
        answer = self._api.patiently("batch", "register_job_definition", **revision)
        return str(answer["jobDefinitionArn"])


def varied(base: Mapping[str, Any], job: JobConfig) -> dict[str, Any]:
    """RegisterJobDefinition's parameters for `base` with the job's image, secrets and shared memory."""
    if base.get("type") != "container" or "containerProperties" not in base:
        raise ConfigurationError(
            f"The job definition {base.get('jobDefinitionName')!r} has no containerProperties, so that no "
            "image, secret or shared memory can be set for a run. Use a definition of one container."
        )
    revision = {key: base[key] for key in _KEPT if base.get(key) is not None}
    container = dict(revision["containerProperties"])
    if job.image is not None:
        container["image"] = job.image
    if job.secrets:
        secrets = {each["name"]: each["valueFrom"] for each in container.get("secrets", [])} | dict(
            job.secrets
        )
        container["secrets"] = [{"name": key, "valueFrom": secrets[key]} for key in sorted(secrets)]
    if job.shared_memory_mib is not None:
        linux = container.get("linuxParameters") or {}
        container["linuxParameters"] = {**linux, "sharedMemorySize": job.shared_memory_mib}
    revision["containerProperties"] = container
    if "tags" in revision:  # those that CloudFormation adds are reserved
        revision["tags"] = {k: v for k, v in revision["tags"].items() if not k.startswith("aws:")}
    content = hashlib.sha256(json.dumps(revision, sort_keys=True).encode()).hexdigest()[:16]
    # A name may have 128 characters.
    return {"jobDefinitionName": f"{base['jobDefinitionName'][:111]}-{content}", **revision}
