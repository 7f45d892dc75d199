"""How objects move, in seconds and in sizes of the object: where one will be, and how sure that is.

Each of a box's centre x, centre y, width and height has a position and a velocity of its own. Velocities
wander about zero and forget themselves (an Ornstein-Uhlenbeck process): in the short run an object goes on
as it went, in the long run only a bounded speed is known of it. So one law serves every sampling rate and
irregular ones, and uncertainty, hence every gate made from it, grows with the time that passed and never
without bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MotionModel:
    """What is expected of objects of one kind. Sizes are an object's longer side.

    Attributes:
        speed: usual speed of the centre, in sizes a second (standard deviation along each axis).
        resize: the same for width and height, in sizes a second.
        memory_s: how long a velocity is kept, in seconds (time constant of its forgetting).
        place_noise: how far a detector's centres are off, in sizes (standard deviation).
        extent_noise: the same for widths and heights: what hides a part of an object changes its box.
    """

    speed: float
    resize: float
    memory_s: float
    place_noise: float
    extent_noise: float

    @property
    def speeds(self) -> Floats:
        return np.array([self.speed, self.speed, self.resize, self.resize])

    @property
    def noise(self) -> Floats:
        """Variances of a detection's x, y, width and height, in squared sizes."""
        return np.array([self.place_noise, self.place_noise, self.extent_noise, self.extent_noise]) ** 2


@dataclass(slots=True, eq=False)
class States:
    """What is known of n objects, each at its own time: all (n, 4) float64, in order x, y, width, height.

    Attributes:
        place: centre and extent in pixels.
        velocity: in pixels a second.
        place_var, covar, velocity_var: how sure both are, in pixels squared, and per second, and its square.
        size: (n, 1) the scale of the object, its longer side in pixels.
    """

    place: Floats
    velocity: Floats
    place_var: Floats
    covar: Floats
    velocity_var: Floats
    size: Floats

    @classmethod
    def seen(cls, measured: Floats, model: MotionModel) -> Self:
        """Objects seen for the first time, as (n, 4) x, y, width, height in pixels."""
        size = measured[:, 2:].max(axis=1, keepdims=True, initial=1.0)
        return cls(
            place=measured.copy(),
            velocity=np.zeros_like(measured),
            place_var=model.noise * size**2,
            covar=np.zeros_like(measured),
            velocity_var=model.speeds**2 * size**2,
            size=size,
        )

    def __len__(self) -> int:
        return len(self.place)

    def select(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> States:
        return States(*(getattr(self, name)[which] for name in self.__slots__))

    def assign(self, which: npt.NDArray[np.intp], states: States) -> None:
        """Puts `states` in the places of those at `which`."""
        for name in self.__slots__:
            getattr(self, name)[which] = getattr(states, name)

    def joined(self, others: States) -> States:
        return States(
            *(np.concatenate([getattr(self, name), getattr(others, name)]) for name in self.__slots__)
        )

    def after(self, seconds: Floats | float, model: MotionModel) -> States:
        """The predicted states after `seconds`, one number or one for each."""
        elapsed = np.asarray(seconds, dtype=np.float64).reshape(-1, 1) / model.memory_s
        keep = np.exp(-elapsed)
        reach = model.memory_s * (1 - keep)  # seconds' worth of the present velocity that lies ahead
        wander = (model.speeds * self.size) ** 2
        return States(
            place=self.place + reach * self.velocity,
            velocity=keep * self.velocity,
            place_var=self.place_var
            + 2 * reach * self.covar
            + reach**2 * self.velocity_var
            + wander * model.memory_s**2 * np.maximum(0, 2 * elapsed - 3 + 4 * keep - keep**2),
            covar=keep * (self.covar + reach * self.velocity_var) + wander * model.memory_s * (1 - keep) ** 2,
            velocity_var=keep**2 * self.velocity_var + wander * (1 - keep**2),
            size=self.size,
        )

    def corrected(self, measured: Floats, noise: Floats) -> States:
        """What is known after seeing them at `measured`, (n, 4), with variances `noise`, (n, 4) (Kalman)."""
        surprise = measured - self.place
        total = self.place_var + noise
        gain, velocity_gain = self.place_var / total, self.covar / total
        place = self.place + gain * surprise
        return States(
            place=place,
            velocity=self.velocity + velocity_gain * surprise,
            place_var=(1 - gain) * self.place_var,
            covar=(1 - gain) * self.covar,
            velocity_var=self.velocity_var - velocity_gain * self.covar,
            size=np.maximum(1.0, place[:, 2:].max(axis=1, keepdims=True, initial=1.0)),
        )

    def reversed(self) -> States:
        """The same objects for a clock that runs backwards."""
        return States(self.place, -self.velocity, self.place_var, -self.covar, self.velocity_var, self.size)


def measured(boxes: npt.NDArray[np.float32]) -> Floats:
    """(n, 4) boxes x1, y1, x2, y2 as centre x, centre y, width and height."""
    corners = boxes.astype(np.float64)
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
