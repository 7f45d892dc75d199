"""Puts a model's export into the worker's image, so that no job has to make it; runs while that is built.

Only the export is portable. What OpenVINO compiles from it is for one kind of processor, and is left to the
machine that runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from capstone_dagster.analysis import ModelUnavailable, model_sha256
from capstone_dagster.analysis.detection.export import openvino_export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="an Ultralytics .pt file")
    parser.add_argument("sha256", help="what its content must be")
    parser.add_argument("cache", type=Path, help="CAPSTONE_MODEL_CACHE in the image")
    asked = parser.parse_args()

    found = model_sha256(asked.model)
    if not re.fullmatch("[0-9a-f]{64}", asked.sha256):
        return _refuse(
            f"MODEL_SHA256 was expected beside MODEL, because loading {asked.model.name} can run code. "
            f"The file at hand has {found}; give that if you trust it."
        )
    if found != asked.sha256:
        return _refuse(f"{asked.model.name} was expected to have SHA-256 {asked.sha256}, but has {found}.")
    try:
        export = openvino_export(asked.model, found, cache=asked.cache, say=print)
    except ModelUnavailable as error:
        return _refuse(str(error))
    print(f"{asked.model.name}, SHA-256 {found}, is exported to {export}")
    return 0


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
