"""What an AWS service's refusal means for whoever keeps telemetry for it, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# outage: it will pass. refused, missing: until somebody mends it. unusable: the client itself, for want of
# credentials or a region. invalid: this request, whoever sends it.
Kind = Literal["outage", "refused", "missing", "unusable", "invalid"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call did not succeed.

    Attributes:
        sentence: what happened, ending with a full stop.
        remedy: what to do about it, likewise.
    """

    kind: Kind
    sentence: str
    remedy: str


_WAIT = "It is tried again by itself; if this lasts, look at the network, the endpoint and AWS's status page."
_PERMISSION = (
    "Allow logs:CreateLogStream and logs:PutLogEvents on the log group, and cloudwatch:PutMetricData for "
    "metrics, to the role that this process has."
)
_CREDENTIALS = (
    "Give this process a role, or credentials that are still valid; `aws sts get-caller-identity` tells "
    "whose it has."
)
_REGION = "Set AWS_REGION (and AWS_DEFAULT_REGION) to the region of the log groups, as in ap-northeast-2."
_MISSING = "Deploy the log groups (infra/logs.yaml), or correct the region: it may have them."
_INVALID = "This is a defect if it happens again: report the message."
_CLIENT = "Check the AWS_* variables and files, and the version of boto3; `capstone doctor` tries the same."

_CODES: tuple[tuple[frozenset[str], Kind, str], ...] = (
    (
        frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "OptInRequired"}),
        "refused",
        _PERMISSION,
    ),
    (
        frozenset(
            {
                *("UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException"),
                *("ExpiredToken", "ExpiredTokenException", "MissingAuthenticationToken", "NotAuthorized"),
                *("MissingAuthenticationTokenException", "SignatureDoesNotMatch", "IncompleteSignature"),
                *("InvalidAccessKeyId", "RequestExpired"),
            }
        ),
        "unusable",
        _CREDENTIALS,
    ),
    (frozenset({"ResourceNotFoundException", "ResourceNotFound"}), "missing", _MISSING),
    (
        frozenset(
            {
                *("InvalidParameterException", "InvalidParameterValue", "InvalidParameterCombination"),
                *("ValidationError", "ValidationException", "SerializationException", "MalformedInput"),
                *("InvalidParameterValueException", "InvalidParameterCombinationException"),
                *("MissingParameter", "MissingRequiredParameterException", "RequestEntityTooLarge", "413"),
            }
        ),
        "invalid",
        _INVALID,
    ),
)
# botocore's own, by name: importing it here would cost whoever only asks.
_OWN: dict[str, tuple[Kind, str]] = {
    "NoCredentialsError": ("unusable", _CREDENTIALS),
    "PartialCredentialsError": ("unusable", _CREDENTIALS),
    "CredentialRetrievalError": ("unusable", _CREDENTIALS),
    "TokenRetrievalError": ("unusable", _CREDENTIALS),
    "NoRegionError": ("unusable", _REGION),
    "InvalidRegionError": ("unusable", _REGION),
    "EndpointConnectionError": ("outage", _WAIT),
    "ProfileNotFound": ("unusable", _CREDENTIALS),
}


def refusal_of(error: BaseException) -> Refusal:
    """What a failed call means."""
    sentence = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".rstrip(". ") + "."
    for name in (each.__name__ for each in type(error).__mro__):
        if name in _OWN:
            return Refusal(_OWN[name][0], sentence, _OWN[name][1])
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        for codes, kind, remedy in _CODES:
            if code in codes:
                return Refusal(kind, sentence, remedy)
        if status in (401, 403):
            return Refusal("refused", sentence, _PERMISSION)
        return Refusal("outage", sentence, _WAIT)
    if any(
        each.__name__ in ("HTTPClientError", "ConnectionError", "OSError") for each in type(error).__mro__
    ):
        return Refusal("outage", sentence, _WAIT)
    return Refusal("unusable", sentence, _CLIENT)
