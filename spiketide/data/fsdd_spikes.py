"""The spoken digits of FSDD as spikes: through a model of the cochlea, or as a level code."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoders.cochlea import BandLevels, Cochlea
from ..errors import ParameterError, unknown
from .augment import Augmented
from .base import Samples
from .events import EventFrames, compact
from .features import cached, fingerprint
from .fsdd import RATE, FSDDRecordings, decode_wav


class SpikingFSDD(Augmented, FSDDRecordings):
    """The 3000 recordings of :class:`~spiketide.data.fsdd.FSDD` as frames of spike counts.

    ``code="cochlea"``: the spikes of 700 bushy cells (:class:`~spiketide.encoders.Cochlea`), adjacent channels
    summed to ``channels``, counted in bins of ``dt``. ``code="levels"``: the level code of band energies
    (:class:`~spiketide.encoders.BandLevels`) of ``channels`` bands, counts 0 to 5.

    Each recording is encoded by itself, so no split leaks into another. The spikes of the cochlea are kept in
    the user's cache folder: another ``dt``, ``channels`` or ``steps`` costs no new encoding. The first encoding of
    all recordings takes some twenty seconds on one core. Splits are those of FSDD: with a ``held_out_speaker``
    give a ``validation_speaker`` as well, or know that validation shares its speakers with training.

    Example:
        >>> from spiketide.data import SpikingFSDD
        >>> data = SpikingFSDD(held_out_speaker="theo", channel_shift=3, time_warp=(0.9, 1.1))
        >>> data.sample_shape, data.steps, data.dt
        ((140,), 60, 10.0)

    Shapes:
        Batches ``x (T, B, channels)`` float32 counts, ``y (B,)``. ``T`` is ``steps`` and there are no lengths;
        with ``steps=None`` sequences are zero-padded to the longest of the batch, with ``lengths (B,)``.

    Args:
        held_out_speaker: test on this speaker; ``None``: the official split.
        validation_speaker: validate on this speaker; ``None``: on a stratified share.
        code: ``"cochlea"`` or ``"levels"``.
        channels: features; for ``"cochlea"`` it divides 700.
        dt: length of a bin (ms).
        steps: cut or zero-pad every recording to so many bins (10.5 % of the recordings have more than 60 of
            10 ms); ``None``: as long as the recording is.
        binary: 1 where there is any spike, instead of the count.
        level: level of the recordings at the ear (dB SPL; ``"cochlea"`` only).
        refractory: refractory time of the bushy cells (ms; ``"cochlea"`` only). With 10 ms a cell fires at most
            once in a bin of 10 ms: half the spikes, and a linear classifier hears some 4 % fewer digits.
        channel_shift: see :class:`~spiketide.data.augment.Augmented`; training samples only.
        time_warp: see there.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown speaker, one speaker in two parts, an unknown code, channels that do not divide
            700, or sizes out of their range.
        DataError: recordings missing, truncated or of another format.

    Reference:
        Recordings as in :class:`~spiketide.data.fsdd.FSDD`; the codes as in their classes.
    """

    def __init__(
        self,
        *,
        held_out_speaker: str | None = None,
        validation_speaker: str | None = None,
        code: Literal["cochlea", "levels"] = "cochlea",
        channels: int = 140,
        dt: float = 10.0,
        steps: int | None = 60,
        binary: bool = False,
        level: float = 85.0,
        refractory: float = 1.0,
        channel_shift: int = 0,
        time_warp: tuple[float, float] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(
            held_out_speaker=held_out_speaker,
            validation_speaker=validation_speaker,
            channel_shift=channel_shift,
            time_warp=time_warp,
            **common,
        )
        if code not in ("cochlea", "levels"):
            raise ParameterError(unknown("code", code, ("cochlea", "levels")))
        if steps is not None and steps < 1:
            raise ParameterError(f"SpikingFSDD expected steps of 1 or more, got {steps}.")
        self.code = code
        self.channels = channels
        self.steps = steps
        self.binary = binary
        if code == "cochlea":
            self.ear = Cochlea(sample_rate=RATE, level=level, refractory=refractory)
            cells = self.ear.channels
            if channels < 1 or cells % channels:
                raise ParameterError(
                    f"SpikingFSDD expected channels that divide the {cells} cells of the cochlea, such as 140 or "
                    f"700, got {channels}."
                )
            self.bins = EventFrames(units=cells, dt=dt, group=cells // channels)
        else:
            self.levels = BandLevels(sample_rate=RATE, channels=channels, dt=dt)
        self._dt = dt
        self._counts: list[NDArray[Any]] | None = None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(channels,)``."""
        return (self.channels,)

    @property
    def dt(self) -> float:
        """Milliseconds of a step, as it was given."""
        return self._dt

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Counts of one part; ``ids`` are places in :attr:`recordings`."""
        recordings, counts = self.recordings, self._all_counts()
        ids = [number for number, it in enumerate(recordings) if self._is_test(*it) == (part == "test")]
        y = torch.tensor([recordings[number][0] for number in ids])
        if self.steps is None:
            return Samples([torch.from_numpy(counts[number]) for number in ids], y, torch.tensor(ids))
        kind = np.result_type(*{counts[number].dtype for number in ids})
        x = np.zeros((len(ids), self.steps, self.channels), dtype=kind)
        for row, number in enumerate(ids):
            frames = counts[number][: self.steps]
            x[row, : len(frames)] = frames
        return Samples(torch.from_numpy(x), y, torch.tensor(ids))

    def _compute(self) -> object:
        return self._all_counts()

    def _encoded(self) -> list[NDArray[np.float32]]:
        """What is kept on disk: events ``(n, 2)``, sample and cell, or the counts of the level code."""
        paths, contents = self._contents()
        encode = self._encode_events if self.code == "cochlea" else self.levels
        what = self.ear.key() if self.code == "cochlea" else self.levels.key()

        def compute() -> list[NDArray[np.float32]]:
            from tqdm.auto import tqdm

            bar = tqdm(paths, desc=f"FSDD {self.code}", unit=" recordings", disable=None, leave=False)
            return [encode(decode_wav(raw, path)) for path, raw in zip(bar, contents, strict=True)]

        return cached(f"fsdd-{self.code}", fingerprint(what, contents), len(paths), compute)

    def _encode_events(self, wave: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        times, units = self.ear(wave)
        # Whole numbers below 2**24 are exact in float32. The first row tells how long the recording is.
        rows = np.column_stack([np.rint(times * RATE), units])
        return np.concatenate([[[len(wave), 0]], rows]).astype(np.float32)

    def _all_counts(self) -> list[NDArray[Any]]:
        if self._counts is None:
            frames = self._encoded()
            if self.code == "cochlea":
                frames = [self._binned(events) for events in frames]
            if self.binary:
                frames = [(counts > 0).astype(np.float32) for counts in frames]
            self._counts = [compact(counts) for counts in frames]
        return self._counts

    def _binned(self, events: NDArray[np.float32]) -> NDArray[np.float32]:
        """Counts up to the end of the recording, not only up to its last spike."""
        samples = events[:, 0].astype(np.float64)
        counts = self.bins(samples[1:] / RATE, events[1:, 1].astype(np.int64))
        steps = max(1, int(np.ceil(1000.0 * samples[0] / RATE / self.bins.dt)))
        whole = np.zeros((max(steps, len(counts)), self.channels), dtype=np.float32)
        whole[: len(counts)] = counts
        return whole
