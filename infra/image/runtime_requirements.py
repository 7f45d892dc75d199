"""The part of requirements.lock that the image runs: neither the local stack's packages nor the tests' own.

Runs while the image is built, before anything is installed, so it needs nothing but Python. The lock file
says under each package who asked for it ("# via"); what the project's own dependencies lead to is kept, to
the letter, with its hashes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pin:
    """One entry of a lock file.

    Attributes:
        name: normalised, as in `psycopg2-binary`.
        text: as it stands in the file, hashes and comments included.
        asked_by: normalised names of the packages that need it.
    """

    name: str
    text: str
    asked_by: frozenset[str]


def runtime_requirements(pyproject: str, lock: str) -> str:
    """The lock file's entries that `project.dependencies` lead to, in its order.

    Raises:
        ValueError: a dependency is not in the lock file.
    """
    pins = list(_pins(lock))
    declared = tomllib.loads(pyproject)["project"]["dependencies"]
    kept = {_normalised(re.split(r"[^\w.-]", dependency, maxsplit=1)[0]) for dependency in declared}
    missing = kept - {pin.name for pin in pins}
    if missing:
        raise ValueError(
            f"requirements.lock was expected to pin every dependency of pyproject.toml, but lacks "
            f"{', '.join(sorted(missing))}; renew it with `make lock`."
        )
    before = 0
    while before != len(kept):
        before = len(kept)
        kept |= {pin.name for pin in pins if pin.asked_by & kept}
    return "".join(pin.text for pin in pins if pin.name in kept)


def _pins(lock: str) -> Iterable[Pin]:
    # An entry begins at the margin; its hashes and comments are indented.
    for text in re.findall(r"^[^\s#].*\n(?:[ \t].*\n?)*", lock, re.MULTILINE):
        comments = re.findall(r"^[ \t]+#[ \t]+(?:via\b[ \t]*)?([\w.-]+)?", text, re.MULTILINE)
        yield Pin(
            name=_normalised(re.split(r"[^\w.-]", text, maxsplit=1)[0]),
            text=text,
            asked_by=frozenset(_normalised(name) for name in comments if name),
        )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.stdout.write(runtime_requirements(*(Path(name).read_text() for name in sys.argv[1:3])))
