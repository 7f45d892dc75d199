"""The requests to AWS that the launcher makes, each with its patience and its errors.

botocore's own retries are off: it would repeat a SubmitJob whose answer got lost, and a second job would run.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from batch_gpu.endings import ENDED, Job, last_container
from batch_gpu.errors import AwsUnavailable, ConfigurationError, PermissionDenied, RequestRefused
from batch_gpu.links import DEFAULT_LOG_GROUP

# DescribeJobs takes no more ids.
DESCRIBED_AT_ONCE = 100
# ListJobs may lag behind SubmitJob; how long we give it before taking its silence for an answer.
LISTING_LAG_S = 3.0
# Full jitter between nothing and a doubling ceiling spreads the requests of many clients best
# (AWS Architecture Blog, "Exponential Backoff And Jitter"). Batch's own limits are some tens a second.
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0
# Of the last lines that a worker wrote; those that carry metrics may be as many as those that say something.
_LINES_TO_LOOK_AT = 50
# What marks CloudWatch's embedded metric format.
_METRICS = '"_aws"'

THROTTLING = {
    "TooManyRequestsException",
    "TooManyRequests",
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
}
FORBIDDEN = {
    "AccessDeniedException",
    "AccessDenied",
    "UnauthorizedOperation",
    "NotAuthorized",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "MissingAuthenticationTokenException",
}
_ACTION = re.compile(r"not authorized to perform:? ([\w-]+:\w+)")


def delays() -> Iterator[float]:
    """Seconds to wait before each next try."""
    ceiling = FIRST_DELAY_S
    while True:
        yield random.uniform(0, ceiling)
        ceiling = min(2 * ceiling, LONGEST_DELAY_S)


class BatchApi:
    """AWS Batch and the log lines of its jobs. Safe to share between threads; clients are made when needed.

    Args:
        region: AWS region; None leaves it to boto3.
        deadline_s: how long a request is repeated while AWS throttles or fails.
    """

    def __init__(
        self,
        region: str | None = None,
        deadline_s: float = 60,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._clock = clock
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()

    @property
    def region(self) -> str:
        """The region that requests go to; makes no request."""
        return str(self._client("batch").meta.region_name)

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job and return its id.

        SubmitJob knows no idempotency token: when it may have worked although no answer came, the job is
        looked up by its name before it is submitted again.

        Raises:
            AwsUnavailable, PermissionDenied, RequestRefused, ConfigurationError
        """
        give_up = self._clock() + self._deadline_s
        maybe_submitted = False
        for delay in delays():
            try:
                if maybe_submitted and (found := self.find(request["jobQueue"], request["jobName"])):
                    return found
                return str(self.call("batch", "submit_job", **request)["jobId"])
            except AwsUnavailable as error:
                maybe_submitted = maybe_submitted or error.maybe_done
                pause = max(delay, LISTING_LAG_S) if maybe_submitted else delay
                if self._clock() + pause > give_up:
                    raise
                self._sleep(pause)
        raise AssertionError("delays() never ends")

    def find(self, queue: str, name: str) -> str | None:
        """The id of the job of this name, which is unique by intention; None if AWS lists none.

        There are several if an answer to SubmitJob got lost and ListJobs lagged. One that runs may be the
        run's worker, so it comes before one that waits, and that before one that has ended; then the oldest.
        Those that have not begun are ended: each would hold a machine only to find that the run has a worker.
        """
        by_name = [{"name": "JOB_NAME", "values": [name]}]
        listed = self.pages(
            "batch", "list_jobs", "jobSummaryList", patient=False, jobQueue=queue, filters=by_name
        )
        found = [each for each in listed if each["jobName"] == name]
        if not found:
            return None

        def order(each: Mapping[str, Any]) -> tuple[bool, bool, int]:
            status = each.get("status")
            return status in ENDED, status != "RUNNING", int(each.get("createdAt") or 0)

        first, *rest = sorted(found, key=order)
        for each in rest:
            if each.get("status") not in (*ENDED, "RUNNING"):
                self.terminate(each["jobId"], f"The run's job is {first['jobId']}.")
        return str(first["jobId"])

    def describe(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """What AWS says of each job; ids that it does not know are left out. Not repeated when throttled."""
        wanted = sorted(set(job_ids))
        described: dict[str, Job] = {}
        for start in range(0, len(wanted), DESCRIBED_AT_ONCE):
            chunk = wanted[start : start + DESCRIBED_AT_ONCE]
            answer = self.call("batch", "describe_jobs", jobs=chunk)
            described |= {job["jobId"]: job for job in answer["jobs"]}
        return described

    def terminate(self, job_id: str, reason: str) -> None:
        """End a job, begun or not; does nothing to one that has ended."""
        self.patiently("batch", "terminate_job", jobId=job_id, reason=reason[:1024])

    def log_lines(self, job: Job, count: int) -> Sequence[str]:
        """The last lines that the job's latest container wrote; none if it wrote nothing.

        Lines of CloudWatch's embedded metric format are left out: they are not for people.
        """
        stream = last_container(job).get("logStreamName")
        if not stream or count < 1:
            return []
        answer = self.call(
            "logs",
            "get_log_events",
            logGroupName=log_group(job),
            logStreamName=stream,
            limit=_LINES_TO_LOOK_AT + count,
            startFromHead=False,
        )
        lines = [str(event["message"]).rstrip("\n") for event in answer["events"]]
        return [line for line in lines if _METRICS not in line][-count:]

    def tagged_secrets(self, tag: str) -> dict[str, str]:
        """ARNs of the secrets of Secrets Manager that have a tag of this key, by the tag's value."""
        wanted = [{"Key": "tag-key", "Values": [tag]}]
        # The filter finds keys that begin so.
        return {
            each["Value"]: str(secret["ARN"])
            for secret in self.pages("secretsmanager", "list_secrets", "SecretList", Filters=wanted)
            for each in secret.get("Tags", [])
            if each["Key"] == tag
        }

    def pages(
        self, service: str, operation: str, key: str, *, patient: bool = True, **parameters: Any
    ) -> list[Mapping[str, Any]]:
        """What all pages of an answer list under `key`; each page is requested `patiently`, or once."""
        found: list[Mapping[str, Any]] = []
        token = "NextToken" if service == "secretsmanager" else "nextToken"
        more: dict[str, str] = {}
        while True:
            page = (self.patiently if patient else self.call)(service, operation, **parameters, **more)
            found += page[key]
            if not page.get(token):
                return found
            more = {token: page[token]}

    def patiently(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """`call`, repeated until the deadline while AWS throttles or fails: for what may be done twice."""
        give_up = self._clock() + self._deadline_s
        for delay in delays():
            try:
                return self.call(service, operation, **parameters)
            except AwsUnavailable:
                if self._clock() + delay > give_up:
                    raise
                self._sleep(delay)
        raise AssertionError("delays() never ends")

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """One request, made once.

        Raises:
            AwsUnavailable: throttled, failed or out of reach.
            PermissionDenied: naming the missing action.
            RequestRefused: anything else that AWS answers.
            ConfigurationError: no region or credentials, or parameters that AWS's own model refuses.
        """
        from botocore import exceptions as aws

        name = f"{service}:{''.join(word.title() for word in operation.split('_'))}"
        try:
            answer: dict[str, Any] = getattr(self._client(service), operation)(**parameters)
            return answer
        except aws.ClientError as error:
            raise _translated(name, error) from error
        except (aws.ConnectTimeoutError, aws.EndpointConnectionError, aws.ProxyConnectionError) as error:
            raise AwsUnavailable(f"{name} could not be sent: {error}", maybe_done=False) from error
        except aws.HTTPClientError as error:
            raise AwsUnavailable(f"{name} got no answer: {error}", maybe_done=True) from error
        except aws.BotoCoreError as error:
            raise ConfigurationError(
                f"{name} could not be made: {error}. Check the region, the credentials and the launcher's "
                "configuration."
            ) from error

    def _client(self, service: str) -> Any:
        with self._making:
            if service not in self._clients:
                import boto3
                from botocore.config import Config
                from botocore.exceptions import BotoCoreError

                config = Config(
                    connect_timeout=5,
                    read_timeout=20,
                    max_pool_connections=32,
                    retries={"mode": "standard", "total_max_attempts": 1},
                )
                try:
                    # A session of our own: boto3's default one is not safe to use from several threads.
                    session = boto3.session.Session(region_name=self._region)
                    self._clients[service] = session.client(service, config=config)  # type: ignore[call-overload]
                except BotoCoreError as error:
                    raise ConfigurationError(
                        f"No client for AWS {service}: {error}. Set the launcher's region or AWS_REGION."
                    ) from error
            return self._clients[service]


def log_group(job: Job) -> str:
    """The CloudWatch log group that the job's container writes to."""
    logging = (job.get("container") or {}).get("logConfiguration") or {}
    return str((logging.get("options") or {}).get("awslogs-group") or DEFAULT_LOG_GROUP)


def _translated(name: str, error: Any) -> Exception:
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), str(details.get("Message", "")) or str(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in THROTTLING or status == 429:
        return AwsUnavailable(f"AWS throttles {name} ({code}: {message}).", maybe_done=False)
    if code in FORBIDDEN or status in (401, 403):
        named = _ACTION.search(message)
        action = named.group(1) if named else name
        return PermissionDenied(
            f"{name} was refused ({code}: {message}). Allow {action} to the role of the process that "
            "launches runs."
        )
    if status >= 500:
        return AwsUnavailable(f"{name} failed at AWS's side ({code}: {message}).", maybe_done=True)
    return RequestRefused(f"{name} was refused ({code}: {message}). Correct what the message names.")
