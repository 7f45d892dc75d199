"""The demo clip: 17.6 s of H.264 in which real people come and go at known times (bench/detector/clip.py)."""

from pathlib import Path

DEMO_CLIP = Path(__file__).with_name("demo-clip.mp4")
PEOPLE_MS = (
    (2040, 8200),
    (2080, 8040),
    (2400, 3560),
    (5880, 7760),
    (5960, 8160),
    (11520, 14000),
    (11640, 15640),
)
"""When a person is in the frame: first and last presentation time of each presence, in ms."""
