"""Where a person sees a job and its log: pages of the AWS console."""

from urllib.parse import quote

# The log group that AWS Batch writes to when a job definition names none.
DEFAULT_LOG_GROUP = "/aws/batch/job"


def job_url(region: str, job_id: str) -> str:
    """The job's page."""
    return f"{_console(region)}/batch/home?region={region}#jobs/detail/{job_id}"


def log_url(region: str, group: str, stream: str) -> str:
    """The log stream's page."""
    place = f"log-groups/log-group/{_twice_quoted(group)}/log-events/{_twice_quoted(stream)}"
    return f"{_console(region)}/cloudwatch/home?region={region}#logsV2:{place}"


def _console(region: str) -> str:
    domain = "console.amazonaws.cn" if region.startswith("cn-") else "console.aws.amazon.com"
    return f"https://{region}.{domain}"


def _twice_quoted(text: str) -> str:
    # What stands behind the # is quoted a second time, with $ in place of %.
    return quote(quote(text, safe=""), safe="").replace("%", "$")
