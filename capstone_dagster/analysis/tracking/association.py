"""Which detection is which known object: the most likely one-to-one assignment."""

from __future__ import annotations

import lap
import numpy as np
import numpy.typing as npt

from .motion import Floats, States

Pairs = npt.NDArray[np.intp]


def motion_evidence(predicted: States, measured: Floats, noise: Floats, unit: Floats) -> Floats:
    """How well each of m detections, (m, 4) with variances (m, 4), fits where each of n objects is expected.

    (n, m) log-likelihoods in nats but for a constant, in units of (n, m) sizes: what is uncertain explains
    everything a little and nothing well.
    """
    total = predicted.place_var[:, None, :] + noise[None, :, :]
    squared = ((predicted.place[:, None, :] - measured[None, :, :]) ** 2 / total).sum(axis=2)
    evidence: Floats = -0.5 * squared + highest_evidence(predicted, noise, unit)
    return evidence


def highest_evidence(predicted: States, noise: Floats, unit: Floats) -> Floats:
    """(n, m) what `motion_evidence` is at most: that of a detection exactly where it is expected."""
    total = predicted.place_var[:, None, :] + noise[None, :, :]
    highest: Floats = -0.5 * np.log(total / unit[:, :, None] ** 2).sum(axis=2)
    return highest


def overlap(one: Floats, other: Floats) -> Floats:
    """(n, m) intersection over union of (n, 4) and (m, 4) x, y, width, height."""
    areas = [np.maximum(boxes[:, 2:], 1.0).prod(axis=1) for boxes in (one, other)]
    shared = overlap_of_smaller(one, other) * np.minimum(areas[0][:, None], areas[1][None, :])
    union: Floats = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(shared / union)


def overlap_of_smaller(one: Floats, other: Floats) -> Floats:
    """(n, m) the share of the smaller box in the larger, of (n, 4) and (m, 4) x, y, width, height."""
    low = np.maximum(one[:, None, :2] - one[:, None, 2:] / 2, other[None, :, :2] - other[None, :, 2:] / 2)
    high = np.minimum(one[:, None, :2] + one[:, None, 2:] / 2, other[None, :, :2] + other[None, :, 2:] / 2)
    areas = [np.maximum(boxes[:, 2:], 1.0).prod(axis=1) for boxes in (one, other)]
    shared: Floats = np.clip(high - low, 0, None).prod(axis=2)
    shared /= np.minimum(areas[0][:, None], areas[1][None, :])
    return shared


def assign(evidence: Floats) -> Pairs:
    """(k, 2) one-to-one pairs with the largest sum of evidence; those without positive evidence stay apart.

    `evidence` is (n, m), in nats, for each pair against both being something else.
    """
    if evidence.size == 0 or not (evidence > 0).any():
        return np.zeros((0, 2), dtype=np.intp)
    most = float(evidence.max())
    cost = np.ascontiguousarray(most - np.maximum(evidence, -1.0))
    # An assignment may leave both ends of a pair free at the cost of a pair without evidence.
    _, columns, _ = lap.lapjv(cost, extend_cost=True, cost_limit=most)
    rows = np.flatnonzero(columns >= 0)
    pairs = np.stack([rows, columns[rows]], axis=1).astype(np.intp)
    return pairs[evidence[pairs[:, 0], pairs[:, 1]] > 0]
