"""The embedded detector: a small person + face YOLO of our own, for the demo clip and offline machines.

`MODEL_CARD.md` beside it says what it was made from and how well it does. Importing this needs no torch.
"""

from pathlib import Path

MODEL_PATH: Path = Path(__file__).with_name("person_face.pt")
"""The weights: an Ultralytics checkpoint (half precision, no optimizer) with the classes person and face."""

MODEL_SHA256: str = "c0cd8086a1087e8586de1d2dcc9299da88e3f68ea07a3e588776dd920919ddfe"
"""SHA-256 of `MODEL_PATH`, so that nobody loads another pickle under this name."""

INFERENCE_SIZE: int = 480
"""Longer side in pixels that pictures are scaled to; the checkpoint says it too, so `YOLO(path)` uses it."""
