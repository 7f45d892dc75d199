"""The embedded detector: a small person + face YOLO of our own, for the demo clip and offline machines.

`MODEL_CARD.md` beside it says what it was made from and how well it does. Importing this needs no torch.
"""

from pathlib import Path

MODEL_PATH: Path = Path(__file__).with_name("person_face.pt")
"""The weights: an Ultralytics checkpoint (half precision, no optimizer) with the classes person and face."""

MODEL_SHA256: str = "f064af169121704efbdd03c7d55ee154c88c9fb9d8c1eaa6fa157465fd2797e1"
"""SHA-256 of `MODEL_PATH`, so that nobody loads another pickle under this name."""

INFERENCE_SIZE: int = 480
"""Longer side in pixels that pictures are scaled to; the checkpoint says it too, so `YOLO(path)` uses it."""

DEMO_SCORE: float = 0.35
"""Detections of the demo clip below this are dropped: from here on the detector's people agree with the
teachers' (precision 0.908, recall 0.929); see the model card's table."""
