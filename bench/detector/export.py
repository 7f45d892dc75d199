"""The OpenVINO export that ships beside the embedded detector, made anew from its checkpoint.

    python -m bench.detector.export

Weights in half precision, as the checkpoint has them, and the graph on one line: 2 MB instead of 3.6.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from capstone_dagster.analysis import model_sha256
from capstone_dagster.analysis.detection.checkpoint import load_checkpoint
from capstone_dagster.local.detector import INFERENCE_SIZE, MODEL_PATH


def main() -> None:
    target = MODEL_PATH.with_name(f"{MODEL_PATH.stem}_openvino_model")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(shutil.copy(MODEL_PATH, folder))  # Ultralytics writes beside it
        load_checkpoint(checkpoint).export(
            format="openvino", dynamic=True, half=True, imgsz=INFERENCE_SIZE, device="cpu", verbose=False
        )
        shutil.copytree(checkpoint.with_name(target.name), target, dirs_exist_ok=True)
    graph = target / f"{MODEL_PATH.stem}.xml"
    graph.write_text(re.sub(r">\s+<", "><", graph.read_text()))
    # By this the analysis knows that it is this checkpoint's.
    with (target / "metadata.yaml").open("a") as metadata:
        metadata.write(f"checkpoint_sha256: {model_sha256(MODEL_PATH)}\n")


if __name__ == "__main__":
    main()
