"""From lists of events to frames: the grids on which spikes are counted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, ParameterError, unknown
from ..kernels.threading import kernel

_VERSION = 1
"""Goes into cache keys: raise it when the arithmetic below changes."""


@dataclass(frozen=True, kw_only=True)
class EventFrames:
    """Frames of spike counts from the events of one recording: times in seconds, and the unit of each.

    ``"uniform"``: a grid from time 0 on, ``frame = floor(1000 t / dt)``, up to the last event's frame.

    ``"anchored"``: the frames of the delay-learning literature ("fixed duration"). A frame opens at the next
    event, at ``t_open``, and takes every event with ``1000 t - 1000 t_open <= dt``; the next frame opens at the
    first event after those. So **leading silence is dropped and gaps are skipped**: frames are not on a grid, and
    a pause of any length takes no frame.

    Values are counts, not 0 and 1, unless ``binary``. A recording without events gives one silent frame: a
    sequence needs a step. All arithmetic is in float64; times stored as float16 are taken as they
    are (their steps are 0.5 ms from half a second on, 1 ms from one second on).

    Example:
        >>> import numpy as np
        >>> from spiketide.data import EventFrames
        >>> times, units = [0.021, 0.030, 0.032, 0.095], [0, 5, 6, 9]
        >>> EventFrames(units=10, group=10)(times, units).ravel().tolist()
        [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        >>> EventFrames(units=10, group=5, binning="anchored")(times, units).tolist()
        [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]

    Shapes:
        ``times (n,)`` seconds, ``units (n,)`` whole numbers -> ``(T, units // group)`` float32, ``T >= 1``.

    Args:
        units: how many channels the events come from.
        dt: length of a frame (ms).
        binning: ``"uniform"`` or ``"anchored"``.
        group: adjacent channels that are summed to one; it divides ``units``.
        max_time: leave out the events at or after this time (s); ``None``: none.
        max_steps: keep only the first frames; ``None``: all.
        min_steps: silent frames are added behind shorter recordings, up to this number.
        binary: 1 where there is any event, instead of the count.
        sort: accept times that are not ascending and sort them (stably: events of equal times keep their order).

    Raises:
        ParameterError: a size out of its range, a group that does not divide the units, an unknown binning.
        DataError: times and units of different lengths or ranks; NaN, infinite or negative times; units that are
            not whole or out of range; times that are not ascending, without ``sort``.

    Reference:
        ``"anchored"`` after SpikingJelly's "fixed duration" frames as used by I. Hammouamri et al., "Learning
        Delays in Spiking Neural Networks using Dilated Convolutions with Learnable Spacings", ICLR 2024; there the
        times are multiplied in float16, which may move an event at the very edge of a frame.
    """

    units: int = 700
    dt: float = 10.0
    binning: Literal["uniform", "anchored"] = "uniform"
    group: int = 1
    max_time: float | None = None
    max_steps: int | None = None
    min_steps: int = 1
    binary: bool = False
    sort: bool = False

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ParameterError(f"EventFrames expected units of 1 or more, got {self.units}.")
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ParameterError(f"EventFrames expected dt > 0 ms, got {self.dt!r}.")
        if self.binning not in ("uniform", "anchored"):
            raise ParameterError(unknown("binning", self.binning, ("uniform", "anchored")))
        if self.group < 1 or self.units % self.group:
            raise ParameterError(
                f"EventFrames expected a group that divides the {self.units} units, got {self.group}: channels are "
                "summed in groups of one size."
            )
        if self.max_time is not None and not self.max_time > 0:
            raise ParameterError(f"EventFrames expected max_time > 0 s, got {self.max_time!r}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ParameterError(f"EventFrames expected max_steps of 1 or more, got {self.max_steps}.")

        if self.min_steps < 1 or (self.max_steps is not None and self.min_steps > self.max_steps):
            raise ParameterError(
                f"EventFrames expected min_steps from 1 to max_steps ({self.max_steps}), got {self.min_steps}."
            )

    @property
    def channels(self) -> int:
        """Features of a frame: ``units // group``."""
        return self.units // self.group

    def __call__(
        self, times: ArrayLike, units: ArrayLike, *, name: str = "the recording"
    ) -> NDArray[np.float32]:
        """The frames of one recording; ``name`` is what messages call it."""
        t, unit = self._checked(np.asarray(times), np.asarray(units), name)
        if self.max_time is not None:
            kept = t < self.max_time
            t, unit = t[kept], unit[kept]
        if len(t) == 0:
            return np.zeros((self.min_steps, self.channels), dtype=np.float32)
        if self.binning == "uniform":
            frame = np.floor(1000.0 * t / self.dt).astype(np.int64)
        else:
            frame = np.empty(len(t), dtype=np.int64)
            _open_frames.alone(1000.0 * t, float(self.dt), frame)
        steps = int(frame[-1]) + 1
        if self.max_steps is not None and steps > self.max_steps:
            steps = self.max_steps
            kept = frame < steps
            frame, unit = frame[kept], unit[kept]
        steps = max(steps, self.min_steps)
        place = frame * self.channels + unit // self.group
        counts = np.bincount(place, minlength=steps * self.channels).reshape(steps, self.channels)
        return (counts > 0 if self.binary else counts).astype(np.float32)

    def _checked(
        self, times: NDArray[Any], units: NDArray[Any], name: str
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if times.ndim != 1 or units.ndim != 1 or len(times) != len(units):
            raise DataError(
                f"EventFrames expected one unit for each time in {name}, both (n,), got times {times.shape} and "
                f"units {units.shape}."
            )
        if len(times) == 0:
            return np.empty(0), np.empty(0, dtype=np.int64)
        if units.dtype.kind not in "iu":
            raise DataError(f"EventFrames expected whole numbers as units in {name}, got {units.dtype}.")
        if times.dtype.kind not in "iuf":
            raise DataError(f"EventFrames expected numbers as times in {name}, got {times.dtype}.")
        t = times.astype(np.float64)
        if not np.isfinite(t).all():
            raise DataError(
                f"EventFrames expected finite times in {name}, got {int((~np.isfinite(t)).sum())} NaN or infinite "
                f"among {len(t)}."
            )
        if t.min() < 0:
            raise DataError(f"EventFrames expected times from 0 s on in {name}, got {t.min()} s.")
        if units.min() < 0 or units.max() >= self.units:
            raise DataError(
                f"EventFrames expected units from 0 to {self.units - 1} in {name}, got {units.min()} to "
                f"{units.max()}: set units to the number of channels of the recording."
            )
        unit = units.astype(np.int64)
        if (t[1:] < t[:-1]).any():
            if not self.sort:
                raise DataError(
                    f"EventFrames expected ascending times in {name}, they are not: pass sort=True to sort them, "
                    "or check that times and units belong together."
                )
            order = np.argsort(t, kind="stable")
            t, unit = t[order], unit[order]
        return t, unit

    def key(self) -> dict[str, Any]:
        """What the frames depend on besides the events: for the key of a cache."""
        return {"frames": "events", "version": _VERSION, **asdict(self)}


@kernel(parallel=False)
def _open_frames(times, dt, frame):  # compiled
    """The number of each event's frame: a frame opens at the first event that the last one does not take."""
    opened, number = times[0], 0
    for i in range(len(times)):
        if times[i] - opened > dt:
            opened = times[i]
            number += 1
        frame[i] = number


def compact(frames: NDArray[np.float32]) -> NDArray[Any]:
    """The same counts as bytes where they fit into bytes: a quarter of the memory."""
    return frames.astype(np.uint8) if frames.max() <= 255 else frames
