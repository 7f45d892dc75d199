"""The demo clip: a virtual camera over two photographs, so that real people come and go at known times.

The photographs are the two example pictures of the Ultralytics package (a street with a bus and four
people, two people close up); the camera path and the hand-checked boxes below are ours. Because the path is
known, so is the truth: which person or face is in the frame, where and when.

    python -m bench.detector.clip

renders the clip that the package has (capstone_dagster/local/demo-clip.mp4) and prints when people are in it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

from capstone_dagster.local.clip import DEMO_CLIP

Label = Literal["person", "face"]
Box = tuple[float, float, float, float]

WIDTH, HEIGHT = 1280, 720
FPS = 25
FRAME_MS = 1000 // FPS

PERSON_VISIBLE = 1 / 3
"""A person is present while at least this part of the area of the photograph's person box is in the frame.

A third is head and shoulders of somebody standing, which is when a viewer would say "there is somebody"."""

FACE_VISIBLE = 2 / 3
"""A face is present while at least this part of its box is in the frame: less hides eyes or mouth."""


@dataclass(frozen=True)
class Subject:
    """Somebody (or a face) in a photograph; `box` is xyxy in the photograph's pixels, checked by eye."""

    name: str
    label: Label
    box: Box


@dataclass(frozen=True)
class Photograph:
    """A picture in `photographs/`: file name, size in pixels, and everybody in it."""

    file: str
    width: int
    height: int
    subjects: tuple[Subject, ...]


STREET = Photograph(
    "bus.jpg",
    810,
    1080,
    (
        Subject("man in a light coat", "person", (48, 397, 246, 903)),
        Subject("man in a light coat", "face", (113, 414, 156, 471)),
        Subject("man in a dark coat", "person", (223, 405, 344, 860)),
        Subject("man in a dark coat", "face", (268, 421, 307, 474)),
        Subject("man walking away", "person", (669, 394, 810, 880)),
        Subject("someone at the edge", "person", (0, 553, 78, 873)),
    ),
)

TOUCHLINE = Photograph(
    "zidane.jpg",
    1280,
    720,
    (
        Subject("man pointing", "person", (120, 201, 1153, 720)),
        Subject("man pointing", "face", (555, 261, 660, 440)),
        Subject("man watching", "person", (748, 42, 1138, 720)),
        Subject("man watching", "face", (914, 98, 1056, 280)),
    ),
)


@dataclass(frozen=True)
class View:
    """What the camera shows of a photograph: a 16:9 rectangle given by centre and width, in its pixels."""

    photograph: Photograph
    cx: float
    cy: float
    width: float

    @property
    def scale(self) -> float:
        """Frame pixels per photograph pixel."""
        return WIDTH / self.width

    def to_frame(self, box: Box) -> Box:
        """A photograph box as xyxy pixels of the frame, not clipped to it."""
        left, top = self.cx - self.width / 2, self.cy - self.width * HEIGHT / WIDTH / 2
        x1, y1, x2, y2 = box
        s = self.scale
        return ((x1 - left) * s, (y1 - top) * s, (x2 - left) * s, (y2 - top) * s)


# (seconds, view): the camera rests or travels from one to the next. The photographs change only where
# both sides of the cut show nobody, so that no tracker can be blamed for joining strangers.
_PATH: tuple[tuple[float, View], ...] = (
    (0.0, View(STREET, 330, 165, 560)),  # house front and bus roof: nobody
    (1.0, View(STREET, 345, 168, 560)),
    (3.0, View(STREET, 330, 579, 652)),  # tilt down to the pavement
    (4.6, View(STREET, 281, 510, 402)),  # closer to the two men; who stands left of them is out of view
    (6.6, View(STREET, 405, 622, 800)),  # back until all four are in the frame
    (7.3, View(STREET, 405, 625, 806)),
    (9.1, View(STREET, 560, 165, 490)),  # up to the balconies: nobody
    (9.8, View(STREET, 552, 165, 490)),
    (9.8, View(TOUCHLINE, 200, 98, 330)),  # cut: blurred stands, nobody
    (10.4, View(TOUCHLINE, 206, 98, 330)),
    (12.4, View(TOUCHLINE, 690, 385, 1150)),  # back until both men are in the frame
    (13.2, View(TOUCHLINE, 720, 345, 1020)),
    (14.8, View(TOUCHLINE, 1010, 185, 540)),  # closer to the man watching
    (17.0, View(TOUCHLINE, 578, 96, 320)),  # away over their heads: nobody
    (17.6, View(TOUCHLINE, 572, 96, 320)),
)

DURATION_MS = round(_PATH[-1][0] * 1000)
FRAMES = DURATION_MS // FRAME_MS


@dataclass(frozen=True)
class Visible:
    """One subject at one moment: `box` is xyxy pixels clipped to the frame, `part` its share in it (0-1)."""

    subject: Subject
    box: Box
    part: float

    @property
    def present(self) -> bool:
        """Whether so much is in the frame that it counts as present."""
        return self.part >= (PERSON_VISIBLE if self.subject.label == "person" else FACE_VISIBLE)


@dataclass(frozen=True)
class Presence:
    """One uninterrupted presence of one subject: presentation times of its first and its last frame.

    Present means that `PERSON_VISIBLE` or `FACE_VISIBLE` of the subject's box is inside the frame; one who
    stands in front is not subtracted.
    """

    label: Label
    subject: str
    start_ms: int
    end_ms: int


def render(path: Path) -> None:
    """Write the clip: mp4, H.264, 1280×720, 25 fps, one key frame a second, as cameras send them."""
    photographs = {photograph.file: load_photograph(photograph) for photograph in (STREET, TOUCHLINE)}
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as out:
        # Encoded once and kept in the repository, so small rather than fast.
        options = {"preset": "slow", "crf": "26", "g": str(FPS), "threads": "2"}
        stream = out.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for index, pixels in enumerate(frames(photographs)):
            planes = cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def truth() -> tuple[Presence, ...]:
    """Every presence of the clip, by start time."""
    presences: list[Presence] = []
    open_since: dict[tuple[Label, str], int] = {}
    for index in range(FRAMES + 1):
        now = index * FRAME_MS
        seen = visible_at(now) if index < FRAMES else ()
        present = {(v.subject.label, v.subject.name) for v in seen if v.present}
        for key in [key for key in open_since if key not in present]:
            presences.append(Presence(key[0], key[1], open_since.pop(key), now - FRAME_MS))
        for key in present:
            open_since.setdefault(key, now)
    return tuple(sorted(presences, key=lambda p: (p.start_ms, p.end_ms, p.label, p.subject)))


def visible_at(pts_ms: float) -> tuple[Visible, ...]:
    """Every subject of which something is in the frame at that presentation time, present or not yet."""
    return visible_in(camera_at(pts_ms))


def visible_in(view: View) -> tuple[Visible, ...]:
    """Every subject of which something is inside that view."""
    found = []
    for subject in view.photograph.subjects:
        x1, y1, x2, y2 = view.to_frame(subject.box)
        clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(WIDTH)), min(y2, float(HEIGHT)))
        if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            area = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
            found.append(Visible(subject, clipped, area / ((x2 - x1) * (y2 - y1))))
    return tuple(found)


def camera_at(pts_ms: float) -> View:
    """Where the camera looks at that presentation time."""
    t = pts_ms / 1000
    at = max(index for index, (second, _) in enumerate(_PATH) if second <= t or index == 0)
    start, a = _PATH[at]
    if at + 1 == len(_PATH):
        return a
    end, b = _PATH[at + 1]
    u = (t - start) / (end - start)
    eased = u * u * u * (u * (u * 6 - 15) + 10)  # no jerk at either end: speed and acceleration start at 0
    return View(
        a.photograph,
        a.cx + (b.cx - a.cx) * eased,
        a.cy + (b.cy - a.cy) * eased,
        a.width * (b.width / a.width) ** eased,  # a zoom looks even when it multiplies
    )


def render_view(photograph: np.ndarray, view: View, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """What the camera sees: (height, width, 3) uint8, channels as in `photograph` ((h, w, 3) uint8)."""
    s = view.width / width
    left, top = view.cx - view.width / 2, view.cy - view.width * height / width / 2
    # Pixel centres, not corners, map onto each other: else the picture creeps by half a pixel in a zoom.
    matrix = np.array([[s, 0, left + s / 2 - 0.5], [0, s, top + s / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    frame: np.ndarray = cv2.warpAffine(
        photograph, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return frame


def load_photograph(photograph: Photograph) -> np.ndarray:
    """Its pixels, (height, width, 3) uint8 BGR."""
    path = Path(__file__).with_name("photographs") / photograph.file
    picture: np.ndarray | None = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(errno.ENOENT, "no picture there", str(path))
    return picture


def frames(photographs: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The clip's frames in order, (720, 1280, 3) uint8 BGR."""
    for index in range(FRAMES):
        view = camera_at(index * FRAME_MS)
        frame = render_view(photographs[view.photograph.file], view)
        seconds, hundredths = divmod(index * FRAME_MS // 10, 100)
        _stamp(frame, f"CAM 1  {seconds // 60:02d}:{seconds % 60:02d}.{hundredths:02d}")
        yield frame


def _stamp(frame: np.ndarray, text: str) -> None:
    """Burn the clip time in at the lower left, as surveillance cameras do: stills can be checked by it."""
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(
            frame, text, (20, HEIGHT - 20), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, thickness, cv2.LINE_AA
        )


if __name__ == "__main__":
    render(DEMO_CLIP)
    print(tuple((each.start_ms, each.end_ms) for each in truth() if each.label == "person"))
