"""Frames per second of the whole pass beside its alternatives, alternating, in one run.

    .venv/bin/python bench/throughput.py VIDEO --model M [--every-frame] [--device D]

Without VIDEO it makes eight seconds of 1080p. M is a .pt file, the folder of an OpenVINO export
(`…_openvino_model`), or a .yaml name of Ultralytics for random weights of that size (default:
yolo11n.yaml). The last line is one JSON object.

    ours                the pass as users get it, with tracks, tables and pictures ours, full          the
    same in 32 bits yolo predict .pt    what people type: Ultralytics' predict on the checkpoint; not
    measured for an export yolo predict        an expert's form of it: on a CPU the OpenVINO export for the
    video's own shape (or M, if
                        M is an export), on a GPU half precision and batches of 16
    decode, forward     each alone on the whole machine: decoding by PyAV or OpenCV, whichever is faster;
                        the model in its throughput mode, fed from memory

Each contender runs in a process of its own, loads its model, warms up, and waits for its turn. In each
round each contender processes the whole video once; the order alternates from round to round. Frames per
second are medians over the rounds; ratios are medians of each round's ratio, because the load of the
machine changes between rounds. Only the work is timed, not starting, importing or loading; the alternatives
neither save nor draw. Processor time stands beside: it is comparable on a busy machine.

Random weights find nothing: they measure decoding, letterboxing, the model and writing for all contenders
alike. A trained model on footage with people adds suppression, tracking and pictures.

The ceiling follows from decode and forward: on a CPU, where they share the cores, 1 / (1 / decode + 1 /
forward); on a GPU the slower of the two. A share above 1 means that one of them alone did not keep every
core busy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too
from bench.footage import make_footage
from bench.report import machine, record, table

_PACKAGES = ("ultralytics-opencv-headless", "torch", "openvino", "av", "opencv-python-headless")
_GPU_BATCH = 16


@dataclass(frozen=True)
class Task:
    """What each contender's process needs."""

    video: str
    model: str
    folder: str
    device: str
    every_frame: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "video", type=Path, nargs="?", help="default: eight seconds of 1080p, made on the spot"
    )
    parser.add_argument(
        "--model", default="yolo11n.yaml", help="a .pt file, an OpenVINO export, or a .yaml name"
    )
    parser.add_argument("--every-frame", action="store_true", help="analyse every frame, as the others do")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="put the result into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="capstone-bench-") as folder:
        video = options.video or make_footage(Path(folder) / "footage.mp4", seconds=8)
        model = _checkpoint(options.model, Path(folder))
        task = Task(str(video), str(model), folder, options.device, options.every_frame)
        turns = compete(CPU_CONTENDERS if options.device == "cpu" else GPU_CONTENDERS, task, options.rounds)
    result = ratios(turns, on_cpu=options.device == "cpu")
    rows = [
        [name, f"{_median(each, 'fps'):.1f}", f"{_median(each, 'cpu_ms'):.1f}"]
        for name, each in turns.items()
    ]
    rows += [
        [name, value, ""] for name, value in result.items() if name.startswith(("ratio", "share", "ceiling"))
    ]
    shown = table(
        [f"medians of {options.rounds} rounds", "frames/s, or ratio", "processor time, ms a frame"], rows
    )
    print(machine(_PACKAGES), shown, json.dumps(result), sep="\n")
    if options.record:
        name = f"Throughput: {Path(options.model).stem}, {options.device}"
        name += ", every frame" if options.every_frame else ", sampled as by default"
        record(name, shlex.join(["python", "-m", "bench.throughput", *sys.argv[1:]]), shown, _PACKAGES)


@dataclass(frozen=True)
class Turn:
    """One contender's whole video: decoded frames per second, and processor milliseconds for each of them."""

    fps: float
    cpu_ms: float


def compete(contenders: dict[str, Contender], task: Task, rounds: int) -> dict[str, list[Turn]]:
    """The turns of each contender; one that cannot run here is reported and left out."""
    spawn = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Connection, Any]] = {}
    for name, contender in contenders.items():
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(contender, task, theirs), daemon=True)
        process.start()
        theirs.close()  # or the end of a process that died would never be seen
        ready = _answer(ours)
        if ready is None:
            running[name] = (ours, process)
        else:
            print(f"{name}: not measured, {ready}", file=sys.stderr)
    turns: dict[str, list[Turn]] = {name: [] for name in running}
    for number in range(rounds):
        for name in list(running) if number % 2 == 0 else list(reversed(running)):
            running[name][0].send("go")
            turn = _answer(running[name][0])
            if not isinstance(turn, Turn):
                raise SystemExit(f"{name} failed in round {number + 1}: {turn}")
            turns[name].append(turn)
            print(f"round {number + 1}: {name} {turns[name][-1].fps:.1f} frames/s", file=sys.stderr)
    for connection, process in running.values():
        connection.send(None)
        process.join()
    return turns


def _answer(connection: Connection) -> object:
    try:
        return connection.recv()
    except EOFError:
        return "its process ended without an answer"


def ratios(turns: dict[str, list[Turn]], *, on_cpu: bool) -> dict[str, float | None]:
    """The contract's keys; None for what was not measured."""

    def fps(name: str) -> float | None:
        return round(_median(turns[name], "fps"), 2) if name in turns else None

    def ratio(upper: str, lower: str) -> float | None:
        if upper not in turns or lower not in turns:
            return None
        pairs = zip(turns[upper], turns[lower], strict=True)
        return round(statistics.median(one.fps / other.fps for one, other in pairs), 3)

    ceilings = [
        1 / (1 / decode.fps + 1 / forward.fps) if on_cpu else min(decode.fps, forward.fps)
        for decode, forward in zip(turns.get("decode", ()), turns.get("forward", ()), strict=False)
    ]
    shares = [ours.fps / ceiling for ours, ceiling in zip(turns.get("ours", ()), ceilings, strict=False)]
    return {
        "ours_fps": fps("ours"),
        "predict_fps": fps("yolo predict"),
        "predict_pt_fps": fps("yolo predict .pt"),
        "decode_fps": fps("decode"),
        "forward_fps": fps("forward"),
        "ceiling_fps": round(statistics.median(ceilings), 2) if ceilings else None,
        "ratio_to_predict": ratio("ours", "yolo predict"),
        "ratio_to_predict_pt": ratio("ours", "yolo predict .pt"),
        "ratio_same_precision": ratio("ours, full", "yolo predict .pt")
        if on_cpu
        else ratio("ours", "yolo predict"),
        "share_of_ceiling": round(statistics.median(shares), 3) if shares else None,
    }


def _median(turns: Sequence[Turn], field: str) -> float:
    return statistics.median(getattr(turn, field) for turn in turns)


def _serve(contender: Contender, task: Task, connection: Connection) -> None:
    try:
        turn = contender(task)
        turn()  # warm: caches, kernels, allocations
        connection.send(None)
    except Exception as error:  # a contender may fail in any way: the parent leaves it out and says why
        connection.send(f"{type(error).__name__}: {error}")
        return
    while connection.recv() is not None:
        started, worked = time.perf_counter(), _processor_s()
        try:
            frames = turn()
        except Exception as error:  # as above
            connection.send(f"{type(error).__name__}: {error}")
            return
        seconds, work = time.perf_counter() - started, _processor_s() - worked
        connection.send(Turn(frames / seconds, 1000 * work / frames))


def _processor_s() -> float:
    """Of this process and of those that it has ended, as the decoder's."""
    return sum(os.times()[:4])


Contender = Callable[[Task], Callable[[], int]]
"""Given the task, loads what it needs and returns one turn: the whole video, its number of frames."""


def _ours(task: Task, precision: str = "auto") -> Callable[[], int]:
    from capstone_dagster.analysis import AnalysisSettings, analyze_video, load_detector

    settings = AnalysisSettings(
        labels=("person", "face"),
        precision="full" if precision == "full" else "auto",
        **({"sample_fps": 0.0} if task.every_frame else {}),
    )
    detector = load_detector(
        Path(task.model), settings, device=task.device, cache=Path(task.folder) / "cache"
    )
    out = Path(task.folder) / f"out-{precision}"
    return lambda: analyze_video(Path(task.video), out, detector=detector, settings=settings).frames_decoded


def _ours_full(task: Task) -> Callable[[], int]:
    return _ours(task, "full")


def _predict(task: Task, model: str, **arguments: Any) -> Callable[[], int]:
    from capstone_dagster.analysis.detection.checkpoint import import_ultralytics

    yolo = import_ultralytics().YOLO(model, task="detect")

    def turn() -> int:
        # An exported model's thread settings and all others are Ultralytics' own.
        return sum(
            1
            for _ in yolo.predict(
                task.video, stream=True, save=False, verbose=False, device=task.device, **arguments
            )
        )

    return turn


def _predict_checkpoint(task: Task) -> Callable[[], int]:
    if Path(task.model).is_dir():
        raise ValueError(f"{Path(task.model).name} is an export: there is no .pt file")
    return _predict(task, task.model)


def _predict_expert_on_cpu(task: Task) -> Callable[[], int]:
    return _predict(task, str(_static_export(task)))


def _predict_expert_on_gpu(task: Task) -> Callable[[], int]:
    return _predict(task, task.model, half=True, batch=_GPU_BATCH)


def _decode(task: Task) -> Callable[[], int]:
    import cv2

    from capstone_dagster.analysis import frames

    def by_pyav() -> int:
        return sum(1 for _ in frames(Path(task.video), sample_fps=0))

    def by_opencv() -> int:
        video, count = cv2.VideoCapture(task.video), 0
        while video.read()[0]:
            count += 1
        return count

    def speed(turn: Callable[[], int]) -> float:
        started = time.perf_counter()
        return turn() / (time.perf_counter() - started)

    by_pyav(), by_opencv()
    return max((by_pyav, by_opencv), key=speed)


def _forward_on_cpu(task: Task) -> Callable[[], int]:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import openvino

    model = openvino.Core().read_model(next(_static_export(task).glob("*.xml")))
    if model.is_dynamic():
        model.reshape([1, 3, *_input_shape(task)])
    compiled = openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    picture = np.random.default_rng(0).random(tuple(compiled.input(0).shape), dtype=np.float32)

    def work(_: int) -> int:
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(picture, shared_memory=True))
        for _ in range(100):
            request.infer()
        return 100

    def turn() -> int:
        with ThreadPoolExecutor(count) as threads:
            return sum(threads.map(work, range(count)))

    return turn


def _forward_on_gpu(task: Task) -> Callable[[], int]:
    import torch

    from capstone_dagster.analysis.detection.checkpoint import load_checkpoint

    device = torch.device(task.device)
    model = load_checkpoint(Path(task.model)).model.fuse().eval().half()
    model = model.to(device, memory_format=torch.channels_last)
    height, width = _input_shape(task)
    pictures = torch.rand(_GPU_BATCH, 3, height, width, device=device, dtype=torch.half)
    pictures = pictures.to(memory_format=torch.channels_last)

    def turn() -> int:
        with torch.inference_mode():
            for _ in range(30):
                model(pictures)
            torch.cuda.synchronize(device)
        return 30 * _GPU_BATCH

    return turn


def _input_shape(task: Task) -> tuple[int, int]:
    from capstone_dagster.analysis import probe
    from capstone_dagster.analysis.detection.letterbox import Letterbox

    info = probe(Path(task.video))
    box = Letterbox.rectangular(info.height, info.width, size=(640, 640), stride=32)
    return box.height, box.width


def _static_export(task: Task) -> Path:
    """What an expert exports by hand, for the video's own shape alone; an export is used as it is."""
    if Path(task.model).is_dir():
        return Path(task.model)
    from capstone_dagster.analysis.detection.checkpoint import import_ultralytics

    folder = Path(task.folder) / "expert"
    exported = folder / f"{Path(task.model).stem}_openvino_model"
    if not exported.exists():
        folder.mkdir()
        copy = folder / Path(task.model).name
        copy.write_bytes(Path(task.model).read_bytes())
        yolo = import_ultralytics().YOLO(str(copy))
        yolo.export(format="openvino", imgsz=list(_input_shape(task)), verbose=False)
    return exported


def _checkpoint(model: str, folder: Path) -> Path:
    if not model.endswith(".yaml"):
        return Path(model).resolve()
    from capstone_dagster.analysis.detection.checkpoint import import_ultralytics

    yolo = import_ultralytics().YOLO(model)
    yolo.model.names = {number: f"class {number}" for number in yolo.model.names} | {0: "person"}
    path = folder / f"{Path(model).stem}.pt"
    yolo.save(str(path))
    return path


CPU_CONTENDERS: dict[str, Contender] = {
    "decode": _decode,
    "forward": _forward_on_cpu,
    "ours": _ours,
    "yolo predict": _predict_expert_on_cpu,
    "ours, full": _ours_full,
    "yolo predict .pt": _predict_checkpoint,
}
GPU_CONTENDERS: dict[str, Contender] = {
    "yolo predict": _predict_expert_on_gpu,
    "forward": _forward_on_gpu,
    "decode": _decode,
    "ours": _ours,
    "yolo predict .pt": _predict_checkpoint,
}

if __name__ == "__main__":
    main()
