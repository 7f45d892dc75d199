"""Puts a model's export into the image, so that no job has to make it; runs while the image is built.

Only the export is portable. What OpenVINO compiles from it is for one kind of processor, and is left to the
machine that runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from capstone_dagster.analysis import ModelUnavailable, model_sha256
from capstone_dagster.analysis.detection.export import openvino_export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the model's file and nothing else")
    parser.add_argument("--baked", default="", help="its path below --app; empty: it is part of the project")
    parser.add_argument("--sha256", default="", help="what its content must be")
    parser.add_argument("--app", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="CAPSTONE_MODEL_CACHE in the image")
    asked = parser.parse_args()

    [model] = asked.folder.iterdir()
    found = model_sha256(model)
    if asked.baked and not re.fullmatch("[0-9a-f]{64}", asked.sha256):
        return _refuse(
            f"MODEL_SHA256 was expected beside MODEL={asked.baked}, because loading a model can run code "
            f"that is in it. The file at hand has {found}; give that if you trust it."
        )
    if asked.sha256 and found != asked.sha256:
        return _refuse(f"{model.name} was expected to have SHA-256 {asked.sha256}, but has {found}.")
    try:
        export = openvino_export(model, found, cache=asked.cache, say=print)
    except ModelUnavailable as error:
        return _refuse(str(error))
    if asked.baked:
        target = asked.app / asked.baked
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, target)
    print(f"{model.name}, SHA-256 {found}, is exported to {export}")
    return 0


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
