"""Train the embedded detector: teachers label videos, pictures are made of them, a small YOLO learns those.

    python -m bench.detector.train --data VIDEOS --teachers TEACHERS --out DIR --minutes 40

`--data` is a folder of videos and animated pictures, `--teachers` holds the two teacher models (see
`teachers.py`). The last fifth of every video is never trained on; `evaluate.py` measures there. A GPU is
used if one is there.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before ultralytics is imported: it reads them once. Training must not install, report or fetch anything
# (offline, it sends no usage events either).
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")

import cv2
import numpy as np

from bench.detector import clip
from bench.detector.pictures import (
    SQUARE,
    WIDE,
    Cutout,
    Labelled,
    crop,
    cut_out,
    fit_whole,
    hide,
    paste,
    weather,
)
from bench.detector.teachers import (
    CLASS_NAMES,
    FACE,
    PERSON,
    Labels,
    Teachers,
    duration_s,
    read_moments,
)
from capstone_dagster.local.detector import INFERENCE_SIZE

HELD_OUT = 0.2
"""The last part of every video, in time, kept for evaluation."""

GAP_S = 0.5
"""Between the trained and the held-out part: neighbouring frames are nearly the same picture."""

NOBODY_VIDEOS = frozenset({"bottle-detection.mp4", "car-detection.mp4", "fruit-and-vegetable-detection.gif"})
"""Scenes of things. Frames in which a teacher sees somebody (a hand, mostly) are left out."""

PROGRESS_PICTURES = 100
"""Pictures set apart because Ultralytics wants a validation set; what counts is measured by evaluate.py."""

MOSTLY_VISIBLE = 0.6
"""From this part of a person's box on, the truth decides that somebody is in view; below, the teachers do.

A third of a box can be a foot and much pavement: taught as a person, it makes phantoms at the edges."""

WIDTH_MULTIPLE = 0.125
"""Half the width of YOLO11n: 0.8 M parameters, which two CPU cores train in under an hour."""


@dataclass(frozen=True)
class Stage:
    """One round of training: `shape` (height, width) of its pictures, how many, and what Ultralytics is told.

    `part` is the number of pictures relative to `--pictures`, `rate` AdamW's learning rate at its peak.
    """

    name: str
    shape: tuple[int, int]
    part: float
    rate: float
    mosaic: float
    whole: float

    def checkpoint(self, out: Path) -> Path:
        """Written after every epoch, so a run that is cut short is not lost: `--export-only` takes it."""
        return out / f"{self.name}-run" / "weights" / "last.pt"


STAGES = (
    # Small, cheap, varied: learns what people look like, in about two thirds of the time.
    Stage("squares", SQUARE, part=1.0, rate=0.002, mosaic=0.4, whole=0.0),
    # Frames as they come in use: learns how large people and faces get there, and to box them once.
    Stage("wide", WIDE, part=0.5, rate=0.0008, mosaic=0.0, whole=0.6),
)

VIDEO_EXTENSIONS = frozenset({".mp4", ".mkv", ".gif", ".avi", ".mov", ".webm"})


def main(arguments: list[str] | None = None) -> None:
    """Run the stages asked for; the labelled pictures are kept in `--out` and reused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of training videos")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the teacher models")
    parser.add_argument("--out", type=Path, required=True, help="working folder; the model appears in it")
    parser.add_argument("--stage", choices=("squares", "wide", "both"), default="both")
    parser.add_argument("--pictures", type=int, default=6000, help="square pictures; half as many wide")
    parser.add_argument("--epochs", type=int, default=40, help="of each stage, unless --minutes is given")
    parser.add_argument("--minutes", type=float, help="train each stage this long instead of --epochs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2, help="torch CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-only", action="store_true", help="write the model from the last checkpoint")
    args = parser.parse_args(arguments)

    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    stages = [stage for stage in STAGES if args.stage in (stage.name, "both")]
    if not args.export_only:
        if any(not (out / stage.name / "data.yaml").exists() for stage in stages):
            make_pictures(args.data, args.teachers, out, stages, args.pictures, args.seed)
        for stage in stages:
            fit(stage, out, args)
    trained = next(path for stage in reversed(STAGES) if (path := stage.checkpoint(out)).exists())
    model = out / "person_face.pt"
    print(f"{model}: {export(trained, model)}")


def held_out_from_s(video: Path) -> float:
    """Second from which a video's frames are for evaluation only."""
    return duration_s(video) * (1 - HELD_OUT)


def training_videos(directory: Path) -> list[Path]:
    """The videos of a folder, by name."""
    videos = sorted(path for path in directory.iterdir() if path.suffix.lower() in VIDEO_EXTENSIONS)
    if not videos:
        raise SystemExit(
            f"no videos in {directory}; --data needs a folder of {', '.join(sorted(VIDEO_EXTENSIONS))}"
        )
    return videos


def sampling_s(video: Path) -> float:
    """How far apart frames are taken: short clips are sampled densely, long ones hold much of the same."""
    return min(max(duration_s(video) / 120, 0.1), 1.0)


# --- making the pictures ------------------------------------------------------------------------------


def make_pictures(
    data: Path, teachers_dir: Path, out: Path, stages: list[Stage], pictures: int, seed: int
) -> None:
    """Label the sources once and write each stage's training pictures with YOLO label files below `out`."""
    rng = np.random.default_rng(seed)
    teachers = Teachers(teachers_dir)
    started = time.monotonic()
    scenes = [scene for video in training_videos(data) for scene in labelled_frames(video, teachers)]
    print(f"labelled {len(scenes)} frames in {time.monotonic() - started:.0f} s")
    views = list(labelled_views(teachers, rng, 500))
    print(f"labelled {len(views)} camera views, {time.monotonic() - started:.0f} s")
    people = [*_cutouts(scenes, rng, 260), *_cutouts(views, rng, 60)]
    print(f"cut out {len(people)} people, {time.monotonic() - started:.0f} s")

    for stage in stages:
        _write_stage(stage, out / stage.name, round(pictures * stage.part), (scenes, views, people), rng)
        print(f"made the {stage.name} pictures, {time.monotonic() - started:.0f} s")


def _write_stage(
    stage: Stage,
    dataset: Path,
    count: int,
    sources: tuple[list[Labelled], list[Labelled], list[Cutout]],
    rng: np.random.Generator,
) -> None:
    """One stage's pictures in the layout that Ultralytics reads."""
    scenes, views, people = sources
    shutil.rmtree(dataset, ignore_errors=True)
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (dataset / kind / split).mkdir(parents=True)
    empty = [scene for scene in [*scenes, *views] if not len(scene.boxes)]
    busy = [scene for scene in scenes if len(scene.boxes)]
    kept = {PERSON: 0, FACE: 0}
    for index in range(count):
        item = _picture(stage, busy, views, empty, people, rng)
        item = Labelled(weather(item.picture, rng), item.classes, item.boxes)
        _write(dataset, "val" if index < PROGRESS_PICTURES else "train", f"{index:05d}", item)
        for kind_id in kept:
            kept[kind_id] += int((item.classes == kind_id).sum())
    (dataset / "data.yaml").write_text(
        f"path: {dataset}\ntrain: images/train\nval: images/val\nnames: {{0: person, 1: face}}\n"
    )
    print(f"{count} {stage.name} pictures with {kept[PERSON]} persons and {kept[FACE]} faces")


def labelled_frames(video: Path, teachers: Teachers) -> Iterator[Labelled]:
    """The frames of a video that may be trained on, labelled; what the teachers doubt is smeared over."""
    limit = held_out_from_s(video) - GAP_S
    for moment in read_moments(video, sampling_s(video)):
        if moment.time_s >= limit:
            return
        labels = teachers.label(moment.picture)
        somebody = len(labels.classes) + len(labels.doubtful_classes)
        if video.name in NOBODY_VIDEOS and somebody:
            continue
        yield Labelled(hide_doubtful(moment.picture, labels), labels.classes, labels.boxes, video.name)


def hide_doubtful(picture: np.ndarray, labels: Labels) -> np.ndarray:
    """Smear what is doubtful, except where it overlaps somebody who is sure and must stay visible."""
    free = [box for box in labels.doubtful_boxes if not any(_touch(box, sure) for sure in labels.boxes)]
    return hide(picture, np.array(free).reshape(-1, 4))


def _touch(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all())


def labelled_views(teachers: Teachers, rng: np.random.Generator, count: int) -> Iterator[Labelled]:
    """Random virtual cameras over the demo clip's photographs, at half the clip's size.

    The hand-checked boxes decide who is there; of somebody only partly in view the teachers say where the box
    is, because that is what the detector is compared with later.
    """
    pictures = {p.file: clip.load_photograph(p) for p in (clip.STREET, clip.TOUCHLINE)}
    made = 0
    while made < count:
        if rng.random() < 0.5:
            view = clip.camera_at(rng.uniform(0, clip.DURATION_MS))
            jitter = rng.normal(0, 0.04 * view.width, 2)
            view = clip.View(view.photograph, view.cx + jitter[0], view.cy + jitter[1], view.width)
        else:
            photograph = (clip.STREET, clip.TOUCHLINE)[made % 2]
            width = float(np.exp(rng.uniform(np.log(250), np.log(photograph.width))))
            half = width / 2, width * clip.HEIGHT / clip.WIDTH / 2
            cx = rng.uniform(half[0], photograph.width - half[0])
            view = clip.View(photograph, cx, rng.uniform(half[1], photograph.height - half[1]), width)
        picture = clip.render_view(pictures[view.photograph.file], view, clip.WIDTH // 2, clip.HEIGHT // 2)
        labels = teachers.label(picture)
        item = agreed(picture, labels, clip.visible_in(view))
        if item is not None:
            made += 1
            yield item


def agreed(picture: np.ndarray, labels: Labels, visible: tuple[clip.Visible, ...]) -> Labelled | None:
    """Teachers and truth together; None where they contradict each other: nothing is to be taught then."""
    offered = [
        *zip(labels.classes, labels.boxes, strict=True),
        *zip(labels.doubtful_classes, labels.doubtful_boxes, strict=True),
    ]
    sure = len(labels.classes)
    kinds = [CLASS_NAMES.index(seen.subject.label) for seen in visible]
    truths = [np.array(seen.box, dtype=np.float32) / 2 for seen in visible]
    partners = _partners(kinds, truths, offered)
    if any(kind == PERSON and i not in partners.values() for i, (kind, _) in enumerate(offered[:sure])):
        return None

    classes: list[int] = []
    boxes: list[np.ndarray] = []
    for index, seen in enumerate(visible):
        kind, true, partner = kinds[index], truths[index], partners.get(index)
        if partner is not None and (partner < sure or seen.present):
            classes.append(kind)
            # Where both agree on a person's extent, ours does not change from one view to the next.
            same = kind == FACE or _iou(offered[partner][1], true) > 0.5
            boxes.append(true if same else np.asarray(offered[partner][1]))
        elif seen.part >= (MOSTLY_VISIBLE if kind == PERSON else 0.5):
            classes.append(kind)
            boxes.append(true)
    return Labelled(
        picture, np.array(classes, dtype=np.int64), np.array(boxes, np.float32).reshape(-1, 4), "view"
    )


def _partners(
    kinds: list[int], truths: list[np.ndarray], offered: list[tuple[int, np.ndarray]]
) -> dict[int, int]:
    """Which true box (index) goes with which of the teachers' boxes (index), the best overlap first.

    Best first, because where two people stand close the box of one overlaps what is in view of the other.
    """
    pairs = [
        (_iou(box, true), t, o)
        for t, true in enumerate(truths)
        for o, (kind, box) in enumerate(offered)
        if kind == kinds[t] and _iou(box, true) > 0.4
    ]
    partners: dict[int, int] = {}
    for _, t, o in sorted(pairs, key=lambda pair: -pair[0]):
        if t not in partners and o not in partners.values():
            partners[t] = o
    return partners


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter + 1e-6))


def _cutouts(items: list[Labelled], rng: np.random.Generator, tries: int) -> Iterator[Cutout]:
    """People to paste, taken evenly from the scenes, from boxes that stand alone."""
    by_source: dict[str, list[tuple[Labelled, int]]] = {}
    for item in items:
        for index in np.flatnonzero(item.classes == PERSON).tolist():
            others = [b for j, b in enumerate(item.boxes) if j != index and item.classes[j] == PERSON]
            if not any(_iou(item.boxes[index], other) > 0.1 for other in others):
                by_source.setdefault(item.source, []).append((item, index))
    for attempt in range(tries if by_source else 0):
        candidates = by_source[sorted(by_source)[attempt % len(by_source)]]
        item, number = candidates[rng.integers(len(candidates))]
        cutout = cut_out(item, number)
        if cutout is not None:
            yield cutout


def _picture(
    stage: Stage,
    busy: list[Labelled],
    views: list[Labelled],
    empty: list[Labelled],
    people: list[Cutout],
    rng: np.random.Generator,
) -> Labelled:
    """One training picture before weather: a scene, a clip view, people in an empty scene, or nobody."""
    kind = rng.choice(4, p=[0.36, 0.26, 0.30, 0.08])
    if kind == 0:
        sources = sorted({item.source for item in busy})
        source = sources[rng.integers(len(sources))]
        candidates = [item for item in busy if item.source == source]
        return _shown(stage, candidates[rng.integers(len(candidates))], rng)
    if kind == 1:
        return _shown(stage, views[rng.integers(len(views))], rng)
    scene = crop(empty[rng.integers(len(empty))], rng, stage.shape, fill=True)
    if kind == 3 or not people:
        return scene
    several = int(rng.choice([1, 2, 3, 5, 8], p=[0.3, 0.25, 0.2, 0.15, 0.1]))
    return paste(scene, [people[i] for i in rng.integers(len(people), size=several)], rng)


def _shown(stage: Stage, item: Labelled, rng: np.random.Generator) -> Labelled:
    if rng.random() < stage.whole:
        return fit_whole(item, stage.shape)
    return crop(item, rng, stage.shape)


def _write(dataset: Path, split: str, name: str, item: Labelled) -> None:
    cv2.imwrite(str(dataset / "images" / split / f"{name}.jpg"), item.picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    lines = []
    height, width = item.picture.shape[:2]
    for kind, (x1, y1, x2, y2) in zip(item.classes, item.boxes / [width, height, width, height], strict=True):
        lines.append(f"{kind} {(x1 + x2) / 2:.5f} {(y1 + y2) / 2:.5f} {x2 - x1:.5f} {y2 - y1:.5f}")
    (dataset / "labels" / split / f"{name}.txt").write_text("\n".join(lines))


# --- training -----------------------------------------------------------------------------------------


def fit(stage: Stage, out: Path, args: argparse.Namespace) -> None:
    """Train one stage with Ultralytics' trainer, from the stage before where there is one."""
    import torch
    import ultralytics
    from ultralytics import YOLO
    from ultralytics.utils import YAML

    torch.set_num_threads(args.threads)
    architecture = out / "person_face.yaml"
    design = YAML.load(Path(ultralytics.__file__).parent / "cfg/models/11/yolo11.yaml")
    design |= {"nc": len(CLASS_NAMES), "scales": {"n": [0.5, WIDTH_MULTIPLE, 1024]}, "scale": "n"}
    YAML.save(architecture, design)

    before = STAGES[0].checkpoint(out)
    start = before if stage is not STAGES[0] and before.exists() else architecture
    model = YOLO(str(start), task="detect")
    cuda = torch.cuda.is_available()
    if not cuda and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        model.add_callback("on_train_start", _use_bfloat16)
        model.add_callback("on_train_end", _use_float32)
    model.train(
        data=str(out / stage.name / "data.yaml"),
        imgsz=max(stage.shape),
        rect=stage.shape[0] != stage.shape[1],
        epochs=args.epochs,
        time=args.minutes / 60 if args.minutes else None,
        batch=args.batch,
        device=0 if cuda else "cpu",
        workers=8 if cuda else 1,
        cache="ram",
        optimizer="AdamW",
        lr0=stage.rate,
        lrf=0.01,
        cos_lr=True,
        warmup_epochs=0.5,
        warmup_bias_lr=0.0,  # the default of 0.1 is meant for SGD; AdamW would throw the biases about
        weight_decay=0.0005,
        # The pictures are crops, pasted and weathered already; what remains is mirroring, colour and mixing.
        fliplr=0.5,
        mosaic=stage.mosaic,
        close_mosaic=4,
        scale=0.25,
        translate=0.05,
        hsv_h=0.02,
        hsv_s=0.5,
        hsv_v=0.3,
        erasing=0.0,
        val=False,
        plots=False,
        save_period=-1,
        seed=args.seed,
        project=str(out),
        name=f"{stage.name}-run",
        exist_ok=True,
        verbose=False,
    )


def _use_bfloat16(trainer: Any) -> None:
    """Run the network (not the loss) in bfloat16: Ultralytics trains in float32 on CPUs, at half the speed.

    Only this one object is changed, not its class: the averaged copy that is saved stays an ordinary one.
    """
    import torch

    network = trainer.model
    forward = network.forward

    def quick(pictures: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(
            pictures, dict
        ):  # a batch: computes the loss, and comes back here for the network's part
            return forward(pictures, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            return _to_float32(forward(pictures, *args, **kwargs))

    network.forward = quick


def _use_float32(trainer: Any) -> None:
    trainer.model.__dict__.pop("forward", None)


def _to_float32(value: Any) -> Any:
    """The same nested structure with float32 tensors."""
    if isinstance(value, dict):
        return {key: _to_float32(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float32(item) for item in value)
    return value.float()


def export(trained: Path, model: Path) -> str:
    """Write the weights alone, half precision, without optimizer, paths or dates; returns their SHA-256.

    Only what `YOLO(path)` needs to predict stays: the network, its class names, and the picture size to use.
    """
    import torch
    from ultralytics.nn.tasks import DetectionModel

    checkpoint: dict[str, Any] = torch.load(trained, map_location="cpu", weights_only=False)
    source = checkpoint.get("ema") or checkpoint["model"]
    network: Any = DetectionModel(_without_paths(source.yaml), nc=len(CLASS_NAMES), verbose=False)
    network.load_state_dict(source.float().state_dict())
    network.names = dict(enumerate(CLASS_NAMES))
    settings = {"task": "detect", "imgsz": INFERENCE_SIZE, "single_cls": False}
    network.args = copy.copy(settings)
    network.half().eval()
    for parameter in network.parameters():
        parameter.requires_grad = False
    model.parent.mkdir(parents=True, exist_ok=True)
    import ultralytics

    torch.save(
        {
            "epoch": -1,
            "best_fitness": None,
            "model": network,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "train_args": settings,
            "train_metrics": {},
            "date": datetime.fromtimestamp(0, UTC).isoformat(),  # the same weights give the same file
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
        },
        model,
    )
    return hashlib.sha256(model.read_bytes()).hexdigest()


def _without_paths(design: dict[str, Any]) -> dict[str, Any]:
    return {
        key: copy.deepcopy(value) for key, value in design.items() if key not in {"yaml_file", "channels"}
    }


if __name__ == "__main__":
    main()
