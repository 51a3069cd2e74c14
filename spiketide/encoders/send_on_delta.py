"""Send-on-delta in several dimensions: an event where a signal has moved by one of a set of vectors."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError, ParameterError, ShapeError, unknown
from ..kernels.threading import kernel

_VERSION = 1
"""Goes into cache keys: raise it when the arithmetic below changes."""

_WINNERS = ("one", "all")
_DIRECTIONS = ("moves", "sphere")

_POWER = 1 / 3
"""Of the second moments of a signal's changes, by which directions are drawn to where it moves."""

_FINEST = 2.0**24
"""Delta vectors in the range of a signal at most."""

Array = NDArray[np.float64]


class DeltaState(NamedTuple):
    """What :meth:`SendOnDelta.encode` hands on from one chunk to the next."""

    last: Array
    """The last sample, ``(channels,)``."""
    potential: Array
    """The potentials after the last step's events, ``(units,)``."""


class DeltaReport(NamedTuple):
    """What a code keeps of a signal and what it costs; :meth:`SendOnDelta.report` gives it."""

    rms: float
    """Root mean square of the length of the error vector, in units of the signal."""
    relative: float
    """The same over that of the signal about its mean: 0 is perfect, 1 no better than a constant. 0 for a constant signal."""
    largest: float
    """The largest length of the error vector."""
    channels: Array
    """Root mean square error of every channel, ``(channels,)``."""
    units: Array
    """Events a step of every unit, ``(units,)``."""
    events: float
    """Events a step, of all units together."""
    crowded: float
    """Share of the steps with more than one event."""
    bits: float
    """Bits a step when an event is sent as the number of its unit: ``events * log2(units)``."""
    per_second: float | None
    """Events a second; ``None`` where no rate was given."""
    axes_rms: float | None
    """``rms`` of independent units along the axes, two a channel, with the same threshold, leak and number of events;
    ``None`` where no step size of theirs costs about as many events."""
    axes_delta: float | None
    """Their step size."""


class SendOnDelta:
    r"""Signals of several channels become events of units, each of which says "moved by my vector".

    With ``w_j`` the delta vector of unit ``j``, ``b`` the threshold, ``d`` the decay and ``D_jk = w_j · w_k``::

        u_j[t] = d (u_j[t-1] - sum_k D_jk s_k[t-1]) + w_j · dx[t]          s_j[t] = 1 if u_j[t] > b |w_j|^2
        decode   r[t] = d r[t-1] + sum_j s_j[t] w_j                       what the events up to and with t tell

    Without a leak (``d = 1``) ``dx[t] = x[t] - x[t-1]`` and the code follows the signal itself; with ``d < 1`` ``dx[t] =
    (1 - d) x[t]`` and it follows its moving average ``y[t] = d y[t-1] + (1 - d) x[t]``, as the neurons of
    :class:`spiketide.Lateral` do. Either way ``u_j[t] = w_j · (y[t] - z[t])`` exactly, ``z[t] = d r[t-1]`` being what the
    decoder knows before the events of ``t``: a unit fires when the error along its vector exceeds ``b`` times its length,
    and its event takes that error from all units. With one channel and the vectors ``+L`` and ``-L`` this is
    send-on-delta: one event each time the signal has moved by more than ``L``.

    Several units may be above their thresholds at once, since their vectors overlap. If all of them fire they correct the same
    error several times; ``winner="one"`` lets only the one fire that takes most off the squared error.

    ``b = 1`` sends late, when the error has grown to a whole vector; ``b = 1/2`` as soon as an event makes the error smaller
    at all. A little above 1/2 the error of a smooth signal is 20 to 40 % smaller at the same number of events; noise as large
    as a vector then costs events. With ``winner="one"`` and ``b >= 1/2`` every event makes the error shorter, and after every
    step with fewer than ``max_events`` events no projection of the error on a vector exceeds ``b`` times its length.

    Example:
        >>> import numpy as np
        >>> from spiketide.encoders import SendOnDelta
        >>> code = SendOnDelta(vectors=[[0.5], [-0.5]])
        >>> signal = np.array([[0.0], [0.6], [1.6], [1.5], [0.4]])
        >>> code(signal).T.tolist()                                                     # up, down
        [[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]]
        >>> code.decode(code(signal), start=signal[0]).T.tolist()
        [[0.0, 0.5, 1.5, 1.5, 0.5]]
        >>> turn = np.linspace(0, 6.28, 500)
        >>> circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        >>> code = SendOnDelta.fit(circle, 16, 0.2, threshold=0.6)
        >>> report = code.report(circle, rate=100.0)
        >>> round(report.rms, 2), round(report.axes_rms, 2), round(report.per_second, 1)
        (0.06, 0.11, 6.4)

    Shapes:
        ``signal (n, channels)`` -> events ``(n, units)`` float32, counts; all arithmetic in float64.

    Args:
        vectors: delta vectors ``(units, channels)``, one a row, in units of the signal: ``W^T``, the weight of a
            ``Dense(channels, units)``. :meth:`fit` chooses them.
        threshold: ``b``, > 0; one number or ``(units,)``.
        decay: ``d``, above 0, 1 at most; per step.
        lateral: ``False``: a spike takes ``b |w_j|^2`` off its own unit and nothing off the others, for comparison. Then ``u``
            is no longer the error, and ``decode`` is not the best decoder: fit one to :meth:`traces`.
        winner: ``"one"`` or ``"all"``, see above; a network layer is ``"all"``.
        max_events: with ``winner="one"``: events a step at most, one after the other, of any units; ``None``: any number, the
            code never lags. With ``"all"`` every unit fires once a step at most.

    Raises:
        ParameterError: vectors that are not a matrix of finite numbers without zero rows; threshold, decay or ``max_events`` out
            of their range; more than one event a step with ``winner="all"``; any number of them with a threshold below 1/2.
        ShapeError: not ``(n, channels)``, or another number of channels than the vectors have.
        DataError: no samples, NaN or infinity, or vectors too short for the signal.

    Reference:
        Zimmer, Pellegrini, Singh & Masquelier 2019: ``winner="all"``, ``decay < 1``. Boerlin, Machens &
        Denève, PLoS Comput. Biol. 9, 2013: ``b = 1/2``, one spike at a time. M. Miskowicz, Sensors 6, 2006: one
        dimension. Differs: without a leak the drive is the change of the signal (their ``1 - d`` would silence it), and the
        choice of vectors by :meth:`fit` is ours.
    """

    def __init__(
        self,
        *,
        vectors: ArrayLike,
        threshold: ArrayLike = 1.0,
        decay: float = 1.0,
        lateral: bool = True,
        winner: Literal["one", "all"] = "one",
        max_events: int | None = None,
    ) -> None:
        w, b = _numbers("vectors", vectors), _numbers("threshold", threshold)
        if w.ndim != 2 or w.size == 0:
            raise ParameterError(
                f"SendOnDelta expected vectors (units, channels), got {w.shape}: for one channel use [[delta], [-delta]]."
            )
        with np.errstate(over="ignore"):
            norms = np.square(w).sum(1)
        if not (norms > 0).all() or not np.isfinite(norms).all():
            raise ParameterError(
                "SendOnDelta expected vectors with a length above 0 and finite, got lengths from "
                f"{np.sqrt(norms.min()):g} to {np.sqrt(norms.max()):g}: leave zero rows out."
            )
        if b.shape not in ((), (len(w),)) or not (b > 0).all():
            raise ParameterError(
                f"SendOnDelta expected a threshold above 0, one number or ({len(w)},), got {threshold!r}."
            )
        if not 0 < decay <= 1:
            raise ParameterError(
                f"SendOnDelta expected a decay above 0 and 1 at most (no leak), got {decay!r}."
            )
        if winner not in _WINNERS:
            raise ParameterError(unknown("winner", winner, _WINNERS))
        if max_events is not None and not (isinstance(max_events, (int, np.integer)) and max_events >= 1):
            raise ParameterError(
                f"SendOnDelta expected max_events of 1 or more, or None, got {max_events!r}."
            )
        if winner == "all" and max_events not in (None, 1):
            raise ParameterError(
                f"SendOnDelta expected winner='one' with max_events={max_events!r}: with 'all' every unit fires once at most."
            )
        if winner == "one" and max_events is None and not (b >= 0.5).all():
            raise ParameterError(
                f"SendOnDelta expected a threshold of 0.5 or more with max_events=None, got {threshold!r}: below, an event can "
                "make the error larger, and events would follow each other without end. Use max_events=1."
            )
        self.vectors: Array = w.copy()
        self.threshold: Array = np.full(len(w), b)
        self.decay, self.lateral = float(decay), bool(lateral)
        self.winner, self.max_events = winner, max_events
        self._norms = norms
        self._taken = (
            w @ w.T if lateral else np.diag(self.threshold * norms)
        )  # row: what its event takes off all
        for array in (self.vectors, self.threshold, self._norms, self._taken):
            array.flags.writeable = False

    def __repr__(self) -> str:
        return (
            f"SendOnDelta(units={self.units}, channels={self.channels}, decay={self.decay:g}, lateral={self.lateral}, "
            f"winner={self.winner!r}, max_events={self.max_events})"
        )

    @property
    def units(self) -> int:
        """How many delta vectors there are."""
        return len(self.vectors)

    @property
    def channels(self) -> int:
        """How many channels a signal has."""
        return self.vectors.shape[1]

    @classmethod
    def fit(
        cls,
        signal: ArrayLike,
        n_vectors: int,
        delta: float,
        *,
        directions: Literal["moves", "sphere"] = "moves",
        dimensions: int | None = None,
        threshold: ArrayLike = 0.7,
        seed: int = 0,
        **options: Any,
    ) -> SendOnDelta:
        r"""An encoder with vectors of length ``delta`` that suit a signal.

        With ``s_j`` spread over the unit sphere by repulsion, and ``C`` the second moments of the signal's changes::

            "sphere"    w_j = delta s_j
            "moves"     w_j = delta C^(1/3) s_j / |C^(1/3) s_j|          more of them where the signal moves

        Both reach all directions. On held-out parts of random signals of 2 and 8 channels and of speech in 8 and 40 bands, at
        equal numbers of events, "moves" was a few per cent worse than "sphere" where all directions are alike and up to 40 %
        better elsewhere; powers from 1/4 to 1/2 are close, axes clustered from the changes were worse. More vectors give a
        smaller error for as many events, each of which then takes more bits to send.

        Args:
            signal: ``(n, channels)``, to learn from; not what the code is measured on.
            n_vectors: how many; 2 in one dimension, otherwise more than there are ``dimensions``. In ``K`` dimensions ``2 K`` at
                least are advisable: fewer leave wide gaps.
            delta: length of all vectors, in units of the signal.
            directions: ``"moves"`` or ``"sphere"``.
            dimensions: follow only this many principal directions of the signal's changes; what lies outside is lost. ``None``:
                all channels.
            seed: for the parts that begin at random.
            threshold: ``b``: 0.6 was best for smooth signals, 0.8 for speech, 1 for noise.
            **options: ``decay``, ``lateral``, ``winner``, ``max_events``.
        """
        x = _checked(signal)
        if not (isinstance(delta, (int, float, np.number)) and math.isfinite(delta) and delta > 0):
            raise ParameterError(f"SendOnDelta expected delta above 0, got {delta!r}.")
        if directions not in _DIRECTIONS:
            raise ParameterError(unknown("directions", directions, _DIRECTIONS))
        most = x.shape[1]
        k = most if dimensions is None else dimensions
        if not 1 <= k <= most:
            raise ParameterError(f"SendOnDelta expected dimensions from 1 to {most}, got {dimensions!r}.")
        if not isinstance(n_vectors, (int, np.integer)):
            raise ParameterError(f"SendOnDelta expected a whole number of vectors, got {n_vectors!r}.")
        least = 2 if k == 1 else k + 1
        if n_vectors < least or (k == 1 and n_vectors != 2):
            raise ParameterError(
                f"SendOnDelta expected {'2 vectors' if k == 1 else f'{least} vectors or more'} in {k} dimension"
                f"{'s' if k > 1 else ''}, got {n_vectors}: fewer leave a direction in which no event can follow, and "
                "dimensions=... makes do with fewer."
            )
        found = _choose(np.diff(x, axis=0), n_vectors, k, directions, seed)
        return cls(vectors=float(delta) * found, threshold=threshold, **options)

    def prepare(self, signal: ArrayLike) -> Array:
        """What the events follow ``(n, channels)``: the signal without a leak, its moving average with one."""
        return self._average(self._signal(signal))

    def __call__(self, signal: ArrayLike) -> NDArray[np.float32]:
        """The events of one recording."""
        return self.encode(signal)[0]

    def encode(
        self, signal: ArrayLike, state: DeltaState | None = None
    ) -> tuple[NDArray[np.float32], DeltaState]:
        """The events of a chunk, and the state with which the next one goes on; chunks give what the whole gives.

        Args:
            signal: ``(n, channels)``.
            state: as returned for the chunk before; ``None`` begins: without a leak at the first sample, with one at 0.
        """
        x = self._signal(signal)
        return self._encode(x, state, np.empty((0, self.units)))

    def potentials(self, signal: ArrayLike) -> Array:
        """``u (n, units)`` of one recording, before each step's events: with ``lateral``, the error along every vector."""
        x = self._signal(signal)
        u = np.empty((len(x), self.units))
        self._encode(x, None, u)
        return u

    def traces(self, events: ArrayLike) -> Array:
        """Events summed with the leak, ``(n, units)``: what a decoder of one's own is fitted to."""
        counts = np.asarray(events, dtype=np.float64)
        if counts.ndim != 2 or counts.shape[1] != self.units:
            raise ShapeError(f"SendOnDelta expected events (n, {self.units}), got {counts.shape}.")
        return _leaky_sum(counts, self.decay)

    def decode(self, events: ArrayLike, start: ArrayLike = 0.0, *, before: bool = False) -> Array:
        """What the events tell, ``(n, channels)``.

        Args:
            events: ``(n, units)``, as encoded.
            start: what was decoded one step before: nothing (0) with a leak; the first sample without one, since events
                do not tell it; the last row of the chunk before, in a stream.
            before: ``z[t]``, before the events of ``t``, in place of ``r[t]``.
        """
        told = self.traces(events) @ self.vectors
        first = np.broadcast_to(np.asarray(start, dtype=np.float64), (self.channels,))
        told += self.decay ** np.arange(1, len(told) + 1)[:, None] * first
        if not before:
            return told
        return np.asarray(self.decay * np.concatenate([first[None], told[:-1]]))

    def report(self, signal: ArrayLike, rate: float | None = None) -> DeltaReport:
        """Reconstruction error and events of this code on one recording, beside those of independent axes.

        The error is :meth:`prepare` minus :meth:`decode`.

        Args:
            signal: ``(n, channels)``.
            rate: samples a second (Hz), for events a second.

        Raises:
            ParameterError: a rate that is not above 0. ShapeError, DataError: as the encoder itself.
        """
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ParameterError(f"SendOnDelta expected a rate above 0 Hz, got {rate!r}.")
        x = self._signal(signal)
        y = self._average(x)
        events, error = self._errors(x, y)
        rms = _rms(error)
        size = _rms(y - y.mean(0))
        each = events.mean(0, dtype=np.float64)
        total = float(each.sum())
        delta, axes = self._axes(x, y, float(events.sum(dtype=np.float64)))
        return DeltaReport(
            rms=rms,
            relative=rms / size if size > 0 else 0.0,
            largest=float(np.sqrt(np.square(error).sum(1).max())),
            channels=np.sqrt(np.square(error).mean(0)),
            units=each,
            events=total,
            crowded=float((events.sum(1) > 1).mean()),
            bits=total * math.log2(self.units),
            per_second=None if rate is None else total * rate,
            axes_rms=axes,
            axes_delta=delta,
        )

    def key(self) -> dict[str, Any]:
        """What the events depend on besides the signal: for the key of a cache."""
        constants = np.concatenate([self.vectors, self.threshold[:, None]], axis=1)
        return {
            "feature": "send-on-delta",
            "version": _VERSION,
            "units": self.units,
            "channels": self.channels,
            "constants": hashlib.sha256(constants.tobytes()).hexdigest(),
            "decay": self.decay,
            "lateral": self.lateral,
            "winner": self.winner,
            "max_events": self.max_events,
        }

    def _signal(self, signal: ArrayLike) -> Array:
        x = _checked(signal)
        if x.shape[1] != self.channels:
            raise ShapeError(
                f"SendOnDelta expected a signal (n, {self.channels}), of as many channels as its vectors have, got {x.shape}."
            )
        return x

    def _average(self, x: Array) -> Array:
        return x.copy() if self.decay == 1 else _leaky_sum((1 - self.decay) * x, self.decay)

    def _encode(
        self, x: Array, state: DeltaState | None, potentials: Array
    ) -> tuple[NDArray[np.float32], DeltaState]:
        if state is None:
            last, u = x[0].copy(), np.zeros(self.units)
        else:
            last, u = (np.array(part, dtype=np.float64) for part in state)
            if last.shape != (self.channels,) or u.shape != (self.units,):
                raise ShapeError(
                    f"SendOnDelta expected a state of shapes ({self.channels},) and ({self.units},), as it returned it, got "
                    f"{last.shape} and {u.shape}; pass None to begin."
                )
        with np.errstate(over="ignore"):
            if self.decay < 1:
                reach = float(np.abs(x).max())
            else:
                reach = max(float(np.ptp(x, axis=0).max()), float(np.abs(x[0] - last).max()))
        shortest = math.sqrt(float(self._norms.min()))
        if reach > _FINEST * shortest:
            raise DataError(
                f"SendOnDelta expected vectors that divide the signal into at most {_FINEST:.0f} steps, got lengths from "
                f"{shortest:g} for a range of {reach:g}: take a larger delta, or scale the signal."
            )
        events = np.zeros((len(x), self.units), dtype=np.float32)
        limits, most = self.threshold * self._norms, self.max_events or 0
        one = self.winner == "one"
        _run(
            x,
            last,
            u,
            self.vectors,
            self._taken,
            self._norms,
            limits,
            self.decay,
            one,
            most,
            events,
            potentials,
        )
        return events, DeltaState(last, u)

    def _errors(self, x: Array, y: Array) -> tuple[NDArray[np.float32], Array]:
        events, _ = self._encode(x, None, np.empty((0, self.units)))
        return events, y - self.decode(events, y[0] if self.decay == 1 else 0.0)

    def _axes(self, x: Array, y: Array, wanted: float) -> tuple[float | None, float | None]:
        """Independent axes at as many events: their step size by bisection, and their error."""
        b = float(self.threshold.mean())
        free = b >= 0.5

        def of(delta: float) -> tuple[float, float]:
            identity = np.eye(self.channels)
            code = SendOnDelta(
                vectors=delta * np.concatenate([identity, -identity]),
                threshold=b,
                decay=self.decay,
                winner="one" if free else "all",
            )
            events, error = code._errors(x, y)
            return float(events.sum(dtype=np.float64)), _rms(error)

        if wanted == 0:
            return None, None
        high = 2 * float(np.abs(y - (y[0] if self.decay == 1 else 0)).max()) / b
        low = high / 2.0**12
        best: tuple[float, float, float] | None = None
        for _ in range(24):
            delta = math.sqrt(low * high)
            count, rms = of(delta)
            if best is None or abs(count - wanted) < best[0]:
                best = abs(count - wanted), delta, rms
            low, high = (delta, high) if count > wanted else (low, delta)
        if best is None or best[0] > max(1.0, 0.05 * wanted):
            return None, None
        return best[1], best[2]


def _numbers(name: str, given: ArrayLike) -> Array:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ParameterError(f"SendOnDelta expected {name} of numbers, got {given!r}.") from None
    if not np.isfinite(array).all():
        raise ParameterError(f"SendOnDelta expected finite {name}, got NaN or infinity.")
    return array


def _checked(signal: ArrayLike) -> Array:
    given = np.asarray(signal)
    if given.ndim != 2 or given.shape[1] == 0:
        raise ShapeError(
            f"SendOnDelta expected a signal (n, channels), got {given.shape}: for one channel use signal[:, None]."
        )
    if not (np.issubdtype(given.dtype, np.floating) or np.issubdtype(given.dtype, np.integer)):
        raise DataError(f"SendOnDelta expected real numbers, got {given.dtype}.")
    if len(given) == 0:
        raise DataError("SendOnDelta expected at least one sample, got an empty signal.")
    x = np.ascontiguousarray(given, dtype=np.float64)
    bad = int((~np.isfinite(x)).sum())
    if bad:
        raise DataError(
            f"SendOnDelta expected finite samples, got {bad} NaN or infinite among {x.size}: cut the gaps out or fill them."
        )
    return x


def _rms(error: Array) -> float:
    return float(np.sqrt(np.square(error).sum(1).mean()))


def _leaky_sum(x: Array, decay: float) -> Array:
    from scipy.signal import lfilter

    if decay == 1:
        return np.cumsum(x, axis=0)
    # along rows: down the columns of an array with rows it is many times slower
    return np.ascontiguousarray(lfilter([1.0], [1.0, -decay], np.ascontiguousarray(x.T), axis=1).T)


# --- which vectors


def _choose(changes: Array, n: int, k: int, directions: str, seed: int) -> Array:
    """``n`` unit vectors in the ``k`` principal directions of the changes."""
    channels = changes.shape[1]
    size, axes = np.linalg.eigh(changes.T @ changes)  # about 0, not about the mean: no change is no event
    size, axes = np.maximum(size[::-1][:k], 0.0), axes[:, ::-1][:, :k]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(k)])  # their signs are the library's whim
    found = _spread(n, k, seed)
    if directions == "moves" and size.max() > 0:
        # a floor: no direction may become one that no vector points to
        found = found * np.maximum(size / size.max(), 1e-6) ** _POWER
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    elif k == channels:
        return found
    return np.asarray(found @ axes.T)


def _spread(n: int, k: int, seed: int) -> Array:
    """``n`` points on the unit sphere of ``k`` dimensions as far from each other as repulsion drives them."""
    if k == 1:
        return np.array([[1.0], [-1.0]])
    if k == 2:
        angle = 2 * np.pi * np.arange(n) / n
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    paired = n % 2 == 0 and n >= 2 * k
    points = np.random.default_rng(seed).normal(size=(n // 2 if paired else n, k))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    step = 0.1
    for _ in range(400):
        others = np.concatenate([points, -points]) if paired else points
        distance = 2.0 - 2.0 * points @ others.T  # squared
        distance[distance < 1e-9] = np.inf  # itself
        push = -(distance**-2.0) @ others  # what points along the point itself goes in the next line
        push -= (push * points).sum(1, keepdims=True) * points
        length = np.linalg.norm(push, axis=1, keepdims=True)
        points = points + step * push / max(float(length.max()), 1e-12)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        step *= 0.99
    return np.concatenate([points, -points]) if paired else points


@kernel(parallel=False, error_model="numpy")
def _run(x, last, u, vectors, taken, norms, limits, decay, one, most, events, potentials):  # type: ignore[no-untyped-def]  # compiled
    """``last`` and ``u`` (after the events of the step before) are read and left for the next chunk."""
    steps, channels = x.shape
    units = u.shape[0]
    change = np.empty(channels)
    fired = np.empty(units, dtype=np.bool_)
    for t in range(steps):
        for c in range(channels):
            change[c] = x[t, c] - last[c] if decay == 1.0 else (1.0 - decay) * x[t, c]
            last[c] = x[t, c]
        for j in range(units):
            drive = 0.0
            for c in range(channels):
                drive += vectors[j, c] * change[c]
            u[j] = decay * u[j] + drive
        if potentials.shape[0] > 0:
            potentials[t] = u
        if one:
            count = 0
            while most == 0 or count < most:
                best, gain = -1, 0.0
                for j in range(units):
                    # |e|^2 - |e - w|^2; from the second event on more than rounding can give, so that it ends
                    less = 2.0 * u[j] - norms[j]
                    enough = count == 0 or less > 1e-9 * norms[j]
                    if u[j] > limits[j] and enough and (best < 0 or less > gain):
                        best, gain = j, less
                if best < 0:
                    break
                events[t, best] += 1.0
                for j in range(units):
                    u[j] -= taken[best, j]
                count += 1
        else:
            for j in range(units):
                fired[j] = u[j] > limits[j]
            for j in range(units):
                if fired[j]:
                    events[t, j] = 1.0
                    for i in range(units):
                        u[i] -= taken[j, i]
