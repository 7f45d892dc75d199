"""The part of requirements.lock that an installation needs: the project's own dependencies and chosen extras.

    python3 infra/locked.py [EXTRA ...] > FILE

requirements.lock pins everything, tests included. It says under each package who asked for it ("# via"): what
the chosen dependencies lead to is kept, to the letter, with its hashes. Runs before anything is installed, so
it needs nothing but Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


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


def locked(pyproject: str, lock: str, extras: Sequence[str] = ()) -> str:
    """The lock file's entries that `project.dependencies` and the extras lead to, in the file's order.

    Raises:
        ValueError: there is no such extra, or a dependency is not in the lock file.
    """
    pins = list(_pins(lock))
    kept = _declared(tomllib.loads(pyproject)["project"], extras)
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


def _declared(project: dict[str, object], extras: Sequence[str]) -> set[str]:
    """Normalised names of what the project and these extras depend on; an extra may name others."""
    own, optional = project["name"], project["optional-dependencies"]
    dependencies, waiting, known = list(project["dependencies"]), list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra not in optional:
            raise ValueError(f"{extra!r} is no extra of pyproject.toml; there are {', '.join(optional)}.")
        if extra not in known:
            known.add(extra)
            for each in optional[extra]:
                others = re.fullmatch(rf"{own}\[(.+)\]", each)
                if others:
                    waiting += re.split(r"\s*,\s*", others[1])
                else:
                    dependencies.append(each)
    return {_normalised(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in dependencies}


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
    try:
        pyproject, lock = ((_ROOT / name).read_text() for name in ("pyproject.toml", "requirements.lock"))
        sys.stdout.write(locked(pyproject, lock, sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
