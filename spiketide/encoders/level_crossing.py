"""Level crossing: events where a signal has moved by a threshold, up and down apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, ParameterError, ShapeError, unknown
from ..kernels.threading import kernel

_VERSION = 1
"""Goes into cache keys: raise it when the arithmetic below changes."""

_MODES = ("difference", "send_on_delta")
_NORMS = ("none", "standard", "range")

_FINEST = 2.0**24
"""Thresholds in the range of a signal at most: counts up to here are exact in float32."""


class CodeReport(NamedTuple):
    """What a code keeps of a signal and what it costs; :meth:`LevelCrossing.report` gives it. Arrays are ``(channels,)``."""

    rms: NDArray[np.float64]
    """Root mean square of signal minus reconstruction, in the units that the threshold has."""
    relative: NDArray[np.float64]
    """The same over the standard deviation of the signal: 0 is perfect, 1 no better than a constant. 0 for a constant signal."""
    largest: NDArray[np.float64]
    """The largest absolute error."""
    up: NDArray[np.float64]
    """Up events a step."""
    down: NDArray[np.float64]
    """Down events a step."""
    active: NDArray[np.float64]
    """Share of the steps with any event."""
    per_second: NDArray[np.float64] | None
    """Events a second, up and down together; ``None`` where no rate was given."""


@dataclass(frozen=True, kw_only=True)
class LevelCrossing:
    """Signals become up and down events.

    First each channel alone is smoothed and normalised, if asked; call the result ``x``, the threshold ``L``. Then::

        difference      up[t] = 1 if x[t+1] - x[t] >= L,   down[t] = 1 if x[t] - x[t+1] >= L;    the last step has no event
        send_on_delta   r begins at x[0];   k = whole thresholds in x[t] - r, towards 0, at most max_events of them
                        up[t] = k if k > 0,   down[t] = -k if k < 0;   r moves by k L

    ``difference`` sees slopes only: what moves by less than ``L`` a step is lost, however far it goes. ``send_on_delta``
    follows: with ``max_events=None``, ``|x[t] - decode(...)[t]| < L`` at every step, and a step may have several events (the
    value is a count). With ``max_events=1`` values are 0 and 1, and the code lags behind slopes steeper than ``L`` a step.

    Causality: ``send_on_delta`` without smoothing and normalisation looks at the present only. ``difference`` looks one step
    ahead, smoothing half its window, normalisation at the whole recording.

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import LevelCrossing
        >>> signal = np.array([[0.0], [0.5], [1.6], [1.5], [0.4]])
        >>> LevelCrossing(threshold=0.5)(signal).T.tolist()                             # up, down
        [[1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]]
        >>> code = LevelCrossing(threshold=0.5, mode="send_on_delta", max_events=None)
        >>> code(signal).T.tolist()
        [[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]]
        >>> code.decode(code(signal)).T.tolist()
        [[0.0, 0.5, 1.5, 1.5, 0.5]]
        >>> code.report(signal, rate=10.0).per_second.tolist()
        [10.0]

    Shapes:
        ``signal (n, channels)`` -> ``(n, 2 channels)`` float32: up and down of channel 0, up and down of channel 1, ...

    Args:
        threshold: ``L``, in units of the signal, or of the normalised signal.
        mode: ``"difference"`` or ``"send_on_delta"``.
        max_events: events a step and channel at most, ``None`` for any number; ``"send_on_delta"`` only (``"difference"``
            has one).
        smooth: window (odd, steps) and order of a Savitzky-Golay filter, ``(5, 3)`` in the ECG pipeline; ``None``: none.
        normalise: for every channel of every recording alone: ``"standard"``: mean 0, standard deviation 1; ``"range"``: 0 to 1;
            ``"none"``. A constant channel becomes 0.

    Raises:
        ParameterError: a threshold that is not above 0, an unknown mode or normalisation, a window that is not odd or not above
            the order, ``max_events`` below 1 or with ``"difference"``.
        ShapeError: not ``(n, channels)``.
        DataError: no samples, fewer than the smoothing window, NaN or infinity, or a threshold too fine for the signal.

    Reference:
        Yin, Corradi & Bohté 2020 and 2021, ECG: ``difference``, after normalisation; one source has
        ``smooth=(5, 3)`` and ``L = 0.03``, another ``L = 0.3`` without smoothing. How they normalise, and which of the two
        made the published files, is not known. Send-on-delta: M. Miskowicz, Sensors 6, 2006. Several events a step are our
        own way to write large steps into sampled time.
    """

    threshold: float
    mode: Literal["difference", "send_on_delta"] = "difference"
    max_events: int | None = None
    smooth: tuple[int, int] | None = None
    normalise: Literal["none", "standard", "range"] = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ParameterError(f"LevelCrossing expected a threshold above 0, got {self.threshold!r}.")
        if self.mode not in _MODES:
            raise ParameterError(unknown("mode", self.mode, _MODES))
        if self.normalise not in _NORMS:
            raise ParameterError(unknown("normalise", self.normalise, _NORMS))
        if self.max_events is not None:
            if self.mode == "difference":
                raise ParameterError(
                    "LevelCrossing expected mode='send_on_delta' with max_events: 'difference' has one event a step anyway."
                )
            if self.max_events < 1:
                raise ParameterError(
                    f"LevelCrossing expected max_events of 1 or more, got {self.max_events}."
                )
        if self.smooth is not None:
            window, order = self.smooth
            if window < 1 or window % 2 == 0 or not 0 <= order < window:
                raise ParameterError(
                    "LevelCrossing expected smooth=(window, order), the window odd and the order from 0 to below it, such as "
                    f"(5, 3), got {self.smooth!r}."
                )

    def prepare(self, signal: ArrayLike) -> NDArray[np.float64]:
        """The signal after smoothing and normalisation, ``(n, channels)``: what the events are made of."""
        x = _checked(signal)
        moves = (
            np.ptp(x, axis=0) > 0
        )  # else rounding in the smoothing and in the mean would be blown up to a signal
        if self.smooth is not None:
            from scipy.signal import savgol_filter

            window, order = self.smooth
            if len(x) < window:
                raise DataError(
                    f"LevelCrossing expected at least {window} samples to smooth, got {len(x)}: for short signals use "
                    "smooth=None."
                )
            x = np.where(moves, savgol_filter(x, window, order, axis=0), x)
        if self.normalise == "standard":
            x = _over(x - x.mean(0), x.std(0) * moves)
        elif self.normalise == "range":
            x = _over(x - x.min(0), np.ptp(x, axis=0) * moves)
        return np.ascontiguousarray(x)

    def __call__(self, signal: ArrayLike) -> NDArray[np.float32]:
        """The events of one recording."""
        return self._encode(self.prepare(signal))

    def stream(self) -> EventStream:
        """The same code for a signal that comes in pieces.

        Raises:
            ParameterError: smoothing or normalisation, which look at the whole signal.
        """
        return EventStream(self)

    def decode(self, events: ArrayLike, start: ArrayLike = 0.0) -> NDArray[np.float64]:
        """The signal that the events tell, ``(n, channels)``: the sum of what they have moved, times the threshold.

        In ``difference`` an event at ``t`` moves the value at ``t + 1``. Smoothing and normalisation are not undone.

        Args:
            events: ``(n, 2 channels)``, as encoded.
            start: the first value of :meth:`prepare`, one for all or ``(channels,)``. Events do not tell it.

        Raises:
            ShapeError: an odd number of columns.
        """
        counts = np.asarray(events, dtype=np.float64)
        if counts.ndim != 2 or counts.shape[1] % 2:
            raise ShapeError(f"LevelCrossing expected events (n, 2 channels) to decode, got {counts.shape}.")
        levels = np.cumsum(counts[:, 0::2] - counts[:, 1::2], axis=0)
        if self.mode == "difference":
            levels = np.concatenate([np.zeros_like(levels[:1]), levels[:-1]])
        return np.asarray(np.asarray(start, dtype=np.float64) + levels * self.threshold)

    def report(self, signal: ArrayLike, rate: float | None = None) -> CodeReport:
        """Reconstruction error and event rate of this code on one recording.

        Args:
            signal: ``(n, channels)``.
            rate: samples a second (Hz), for events a second.

        Raises:
            ParameterError: a rate that is not above 0. ShapeError, DataError: as the encoder itself.
        """
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ParameterError(f"LevelCrossing expected a rate above 0 Hz, got {rate!r}.")
        x = self.prepare(signal)
        events = self._encode(x)
        error = x - self.decode(events, x[0])
        rms = np.sqrt(np.mean(np.square(error), axis=0))
        up, down = events[:, 0::2], events[:, 1::2]
        each = np.asarray((up + down).mean(0, dtype=np.float64))
        return CodeReport(
            rms=rms,
            relative=_over(rms, x.std(0)),
            largest=np.abs(error).max(0),
            up=up.mean(0, dtype=np.float64),
            down=down.mean(0, dtype=np.float64),
            active=np.asarray(((up + down) > 0).mean(0)),
            per_second=None if rate is None else each * rate,
        )

    def key(self) -> dict[str, Any]:
        """What the events depend on besides the signal: for the key of a cache."""
        return {"feature": "level-crossing", "version": _VERSION, **asdict(self)}

    def _encode(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        if self.mode == "difference":
            return self._changes(x)
        low, high = x.min(0), x.max(0)
        return self._levels(x, low, high, x[0], np.zeros(x.shape[1], dtype=np.int64))

    def _changes(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        events = np.zeros((len(x), 2 * x.shape[1]), dtype=np.float32)
        change = np.diff(x, axis=0)
        events[:-1, 0::2] = change >= self.threshold
        events[:-1, 1::2] = -change >= self.threshold
        return events

    def _levels(
        self,
        x: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        start: NDArray[np.float64],
        level: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Events from ``level`` thresholds above ``start`` on, ``(channels,)`` each; ``level`` is moved. ``low`` and ``high``: of
        all of the signal up to here."""
        span, size = float((high - low).max()), float(np.maximum(abs(low), abs(high)).max())
        if span > self.threshold * _FINEST or size > self.threshold * 2.0**48:
            raise DataError(
                f"LevelCrossing expected a threshold that divides the signal into at most {_FINEST:.0f} levels, got "
                f"{self.threshold:g} for values up to {size:g} in a range of {span:g}: raise the threshold, or normalise."
            )
        events = np.zeros((len(x), 2 * x.shape[1]), dtype=np.float32)
        most = 0 if self.max_events is None else self.max_events
        _send_on_delta(x, self.threshold, most, start, level, events)
        return events


class EventStream:
    """The events of a signal that comes in pieces, to the bit those of the whole: :meth:`LevelCrossing.stream` makes it.

    Kept between the pieces is what the code needs of the past: the last sample, or how many thresholds the level is above the
    first sample.

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import LevelCrossing
        >>> code = LevelCrossing(threshold=0.1, mode="send_on_delta")
        >>> signal = np.array([[0.0], [0.3], [0.2], [0.6]])
        >>> stream = code.stream()
        >>> pieces = np.concatenate([stream(signal[:1]), stream(signal[1:2]), stream(signal[2:]), stream.end()])
        >>> bool((pieces == code(signal)).all())
        True

    Shapes:
        a call takes ``(n, channels)`` and gives ``(m, 2 channels)`` float32, as :class:`LevelCrossing`: ``m = n`` with
        ``"send_on_delta"``. With ``"difference"`` the event of a sample is known when its successor has come: the first call
        gives ``n - 1``, and :meth:`end` the last.

    Args:
        code: of the whole signal.

    Raises:
        ParameterError: a code that smooths or normalises.
        ShapeError, DataError: as the code itself; another number of channels than before.
    """

    def __init__(self, code: LevelCrossing) -> None:
        if code.smooth is not None or code.normalise != "none":
            raise ParameterError(
                "a stream cannot be smoothed or normalised over its whole length: use LevelCrossing(smooth=None, "
                "normalise='none')."
            )
        self.code = code
        self._last: NDArray[np.float64] | None = None
        self._seen: tuple[NDArray[np.float64], ...] = ()  # first, lowest and highest value of each channel
        self._level = np.zeros(0, dtype=np.int64)

    def __call__(self, piece: ArrayLike) -> NDArray[np.float32]:
        """The events that are known now."""
        x = np.ascontiguousarray(_checked(piece))
        if self._last is not None and x.shape[1] != self._last.shape[1]:
            raise ShapeError(
                f"LevelCrossing expected {self._last.shape[1]} channels, as in the pieces before, got {x.shape[1]}."
            )
        if self.code.mode == "difference":
            joined = x if self._last is None else np.concatenate([self._last, x])
            self._last = x[-1:]
            return self.code._changes(joined)[:-1]
        if self._last is None:
            self._seen, self._level = (x[0], x[0], x[0]), np.zeros(x.shape[1], dtype=np.int64)
        start, low, high = self._seen
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        events = self.code._levels(x, low, high, start, self._level)
        self._last, self._seen = x[-1:], (start, low, high)
        return events

    def end(self) -> NDArray[np.float32]:
        """The event of the last sample, which is none, with ``"difference"``; the next call begins another signal."""
        last, self._last = self._last, None
        steps = 0 if last is None or self.code.mode != "difference" else 1
        return np.zeros((steps, 0 if last is None else 2 * last.shape[1]), np.float32)


def _checked(signal: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(signal)
    if given.ndim != 2 or given.shape[1] == 0:
        raise ShapeError(
            f"LevelCrossing expected a signal (n, channels), got {given.shape}: for one channel use signal[:, None]."
        )
    if not (np.issubdtype(given.dtype, np.floating) or np.issubdtype(given.dtype, np.integer)):
        raise DataError(f"LevelCrossing expected real numbers, got {given.dtype}.")
    if len(given) == 0:
        raise DataError("LevelCrossing expected at least one sample, got an empty signal.")
    x = given.astype(np.float64)
    bad = int((~np.isfinite(x)).sum())
    if bad:
        raise DataError(
            f"LevelCrossing expected finite samples, got {bad} NaN or infinite among {x.size}: cut the gaps out or fill them."
        )
    return x


def _over(x: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """``x / scale``, and 0 where the scale is."""
    return np.asarray(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))


@kernel(parallel=False, error_model="numpy")
def _send_on_delta(x, threshold, most, starts, levels, events):  # type: ignore[no-untyped-def]  # compiled
    """The level is kept as a whole number of thresholds, so the decoder's sum is the very same number."""
    for c in range(x.shape[1]):
        start = starts[c]
        level = levels[c]
        for t in range(x.shape[0]):
            value = x[t, c]
            k = np.int64((value - (start + level * threshold)) / threshold)
            # a quotient that was rounded may be one off: what is decoded decides
            while value - (start + (level + k) * threshold) >= threshold:
                k += 1
            while (start + (level + k) * threshold) - value >= threshold:
                k -= 1
            if most > 0:
                k = min(max(k, -most), most)
            level += k
            if k > 0:
                events[t, 2 * c] = k
            elif k < 0:
                events[t, 2 * c + 1] = -k
        levels[c] = level
