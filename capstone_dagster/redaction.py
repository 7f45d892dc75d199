"""Nothing secret in a log line: what is recognised by its shape, and what is known to be secret here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from capstone_dagster.settings import Settings

HIDDEN = "***"

# A value that is secret because of the name before it: quoted, or up to what ends a word. (In the ARN of a
# secret the word stands between colons.)
_VALUE = r"""(?:"[^"\r\n]*"|'[^'\r\n]*'|[^\s"',;&}]+)"""
_NAMES = (
    r"secret(?:_?access)?_?key|(?<!:)secret|(?:session|security|access|refresh|auth|id)_?token|passw(?:or)?d|pwd"
    r"|pgpassword|api_?key|private_?key"
)
_SECRET_NAME = re.compile(rf"(?:^|[_-])(?:{_NAMES}|authorization|token)$", re.IGNORECASE)

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # user:password@host in a URL. The last @ before the path ends it: passwords have been seen to hold some.
    (re.compile(r"(://[^\s/:@'\"]*):[^\s/'\"]*@"), rf"\1:{HIDDEN}@"),
    # Presigned URLs, those of Signature Version 2 too, and URLs within URLs; and the headers of that name.
    (
        re.compile(
            r"(\b(?:X-Amz-(?:Algorithm|Credential|Date|Expires|SignedHeaders|Signature|Security-Token)"
            r"|AWSAccessKeyId|Signature)[\"']?\s*(?:=|%3D|:)\s*)[\"']?[^&\s\"'<>,;]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    # Queries of other URLs: webhooks, shared access signatures.
    (
        re.compile(r"([?&](?:\w*token|sig|code|auth|credential)=)[^&\s\"'<>]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # An Authorization header has spaces and commas: all of it up to the quote, else the line, ends.
    (
        re.compile(
            r"(authorization[\"']?\s*[:=]\s*)(?:b?\"[^\"\r\n]*\"|b?'[^'\r\n]*'|[^\r\n]+)", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(Bearer)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    # Ids of access keys and of what they belong to; the letters are AWS's own.
    (re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}\b"), HIDDEN),
    (re.compile(rf"(\b\w*?(?:{_NAMES})[\"']?\s*[:=]\s*){_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
)
# A shorter secret is a word of the language: hiding it wherever it stands would hide what happened, and
# reveal the secret. The emulators' credentials are so.
_SHORTEST_SECRET = 8
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "POSTGRES_PASSWORD", "PGPASSWORD")
_URL_VARIABLES = ("CAPSTONE_DATABASE_URL", "DAGSTER_POSTGRES_URL")


class Redaction:
    """Hides secrets in texts and in whatever holds texts.

    Args:
        secrets: texts that are hidden wherever they stand, as they are and percent-encoded.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {form for secret in secrets for form in (secret, quote(secret, safe=""), quote(secret))}
        # The longest first: one may be part of another.
        forms = sorted((form for form in known if len(form) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, forms))) if forms else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
        return text

    def is_secret(self, name: str) -> bool:
        """Whether a field of this name is not to be shown, whatever is in it."""
        return _SECRET_NAME.search(name) is not None


def known_secrets(settings: Settings | None, environment: Mapping[str, str] = os.environ) -> set[str]:
    """What is secret in this process: secret settings, passwords of URLs, AWS credentials.

    A password that is also a name in use (as `capstone` is) is left out: it looks like the name.
    """
    found = {environment[name] for name in _SECRET_VARIABLES if name in environment}
    urls = [environment[name] for name in _URL_VARIABLES if name in environment]
    open_names = {"capstone", "postgres", "dagster"}
    if settings is not None:
        values: list[Any] = [getattr(settings, name) for name in type(settings).model_fields]
        secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        urls += [secret for secret in secrets if "://" in secret]
        found |= {secret for secret in secrets if "://" not in secret}
        open_names |= {settings.postgres_user, settings.postgres_db}
    for url in urls:
        try:
            password = urlsplit(url).password
        except ValueError:
            continue  # no URL after all: its shape is hidden where it stands
        if password:
            found |= {password, unquote(password)}
    return found - open_names
