"""What 10,000, 100,000 or a million videos a day need: a simulation of one day, driven by measured figures.

Uploads arrive by a curve of the day. In each second a stage takes what it can and leaves the rest waiting:
the daemon, PostgreSQL, AWS Batch's SubmitJob, the GPU machines. What a video costs each stage was measured by
`bench/short_clips.py`; what no machine here can measure (a GPU, a container's start, prices) is an option.

    .venv/bin/python bench/scale.py [--videos 10000 100000 1000000] [--a-job 1 5 20] [--gpu-s 10] …
"""

import argparse
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_DAY_S = 86_400
# Uploads of people and shops: four times as many at the busiest hour as at the quietest.
_SWING = 0.6


@dataclass(frozen=True, slots=True)
class Video:
    """What one video costs each component, measured on the local stack with a run for each two-second clip.

    Attributes:
        daemon_s: processor seconds of daemon and code server, which together hold little more than one core.
        postgres_s: processor seconds of PostgreSQL.
        event_kb: in Dagster's event log.
    """

    daemon_s: float = 0.13
    postgres_s: float = 0.17
    event_kb: float = 252.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deployment has; not measured here."""

    gpus: int
    gpu_s: float
    container_s: float
    model_s: float
    handover_s: float
    usd_per_gpu_hour: float
    postgres_cores: float
    # AWS Batch takes 50 requests a second and account, a fixed limit.
    submits_per_s: float = 50.0


@dataclass(frozen=True, slots=True)
class Day:
    """One day of the simulation.

    Attributes:
        age_p50_s, age_p99_s: from upload to published, for the videos of the day.
        left: videos that wait at its end.
        busiest: the share of its capacity that each stage needs in the busiest hour.
    """

    age_p50_s: float
    age_p99_s: float
    left: int
    usd_per_1000: float
    event_gb: float
    busiest: dict[str, float]


def simulate(videos: int, a_job: int, deployments: int, video: Video, have: Deployment) -> Day:
    """One day of one deployment's share of the uploads, in steps of a second.

    Args:
        videos: a day, all deployments together.
        a_job: runs, of a video each, that one job executes where enough wait.
    """
    seconds = np.arange(_DAY_S)
    curve = 1 - _SWING * np.cos(2 * math.pi * seconds / _DAY_S)
    arrivals = videos / deployments / _DAY_S * curve
    gpu_s_a_video = _gpu_s(have, a_job)
    rates = {
        "daemon": 1 / video.daemon_s,
        "PostgreSQL": have.postgres_cores / video.postgres_s,
        "SubmitJob": a_job * have.submits_per_s / deployments,
        "GPUs": have.gpus / gpu_s_a_video,
    }
    ages, flow = np.zeros(_DAY_S), arrivals
    for rate in rates.values():
        leaving = _served(flow, rate)
        ages += _waiting_s(flow, leaving)
        flow = leaving
    # The first video of a job waits for its start, the others for a worker that is through.
    first, later = have.container_s + have.model_s + have.gpu_s, have.handover_s + have.gpu_s
    ages = np.concatenate([ages + first, ages + later])
    weights = np.concatenate([arrivals / a_job, arrivals * (1 - 1 / a_job)])
    order = np.argsort(ages)
    share = np.cumsum(weights[order]) / weights.sum()
    return Day(
        age_p50_s=round(float(ages[order][np.searchsorted(share, 0.5)]), 1),
        age_p99_s=round(float(ages[order][np.searchsorted(share, 0.99)]), 1),
        left=round(deployments * float(arrivals.sum() - flow.sum())),
        usd_per_1000=round(1000 * gpu_s_a_video / 3600 * have.usd_per_gpu_hour, 2),
        event_gb=round(videos * video.event_kb / 1e6, 1),
        busiest={name: round(float(arrivals.max()) / rate, 2) for name, rate in rates.items()},
    )


def _gpu_s(have: Deployment, a_job: int) -> float:
    """For how long a video holds a GPU machine."""
    starts = (have.container_s + have.model_s + have.handover_s * (a_job - 1)) / a_job
    return have.gpu_s + starts


def _served(arrivals: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.float64]:
    """What leaves a stage each second that takes so many a second: the rest waits, first in, first out."""
    total = np.cumsum(arrivals)
    # All that has arrived, or what the stage has managed since it last stood still.
    spare = rate * np.arange(1, len(total) + 1)
    left = np.minimum(total, spare + np.minimum.accumulate(np.concatenate(([0.0], (total - spare)[:-1]))))
    return np.diff(left, prepend=0.0)


def _waiting_s(
    arrivals: npt.NDArray[np.float64], leaving: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How long what arrives in each second waits; until the day's end, if it does not leave before."""
    gone = np.searchsorted(np.cumsum(leaving), np.cumsum(arrivals) - 1e-6)
    waited: npt.NDArray[np.float64] = np.maximum(0, gone - np.arange(len(arrivals))).astype(float)
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="a day")
    parser.add_argument("--a-job", type=int, nargs="+", default=[1, 5, 20], help="runs in one job")
    parser.add_argument("--deployments", type=int, default=1, help="that share the uploads")
    parser.add_argument("--gpus", type=int, default=0, help="of each; 0: as many as the busiest hour needs")
    parser.add_argument("--gpu-s", type=float, default=10.0, help="a video's pass on the GPU")
    parser.add_argument(
        "--container-s", type=float, default=20.0, help="from a free machine to a started run"
    )
    parser.add_argument("--model-s", type=float, default=5.0, help="to load the model")
    parser.add_argument("--handover-s", type=float, default=1.6, help="from one run's pass to the next one's")
    parser.add_argument("--usd", type=float, default=0.65, help="a GPU machine's price an hour")
    parser.add_argument("--postgres-cores", type=float, default=4.0)
    options = parser.parse_args()
    for videos in options.videos:
        for a_job in options.a_job:
            have = Deployment(
                options.gpus,
                options.gpu_s,
                options.container_s,
                options.model_s,
                options.handover_s,
                options.usd,
                options.postgres_cores,
            )
            busiest = 1.05 * (1 + _SWING) * videos / options.deployments / _DAY_S
            have = replace(have, gpus=options.gpus or math.ceil(busiest * _gpu_s(have, a_job)))
            day = simulate(videos, a_job, options.deployments, Video(), have)
            facts = {"videos": videos, "a_job": a_job, "gpus": have.gpus * options.deployments}
            print(json.dumps(facts | {name: getattr(day, name) for name in Day.__slots__}))


if __name__ == "__main__":
    main()
