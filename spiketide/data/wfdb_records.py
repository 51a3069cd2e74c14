"""Electrocardiograms of your own: WFDB records, and the wave that every step belongs to."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ParameterError, ShapeError, unknown
from ..types import UNLABELLED

WAVES = ("P", "PQ", "QR", "RS", "ST", "TP")
"""The classes of :func:`wave_labels`, numbered from 0, as in :class:`~spiketide.data.QTDB`."""

_BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")
"""The WFDB codes of heart beats: they stand at the R peak."""


class Annotations(NamedTuple):
    """Marks in a record, in order of time."""

    samples: NDArray[np.int64]
    """``(k,)``: the step of each mark, at the rate of the signal that came with it."""
    symbols: tuple[str, ...]
    """The WFDB code of each: ``"("`` and ``")"`` onset and end of a wave, ``"p"``, ``"t"``, ``"u"`` and the beats its peak."""


class Record(NamedTuple):
    """What :func:`read_record` reads."""

    signal: NDArray[np.float64]
    """``(n, leads)``, in the physical units of the record (mV)."""
    rate: float
    """Samples a second (Hz)."""
    annotations: Annotations | None
    """``None`` where no annotator was asked for."""


def read_record(
    path: str | Path,
    channels: Sequence[int | str] | None = None,
    rate: float | None = 250.0,
    *,
    annotator: str | None = None,
    gaps: Literal["raise", "interpolate"] = "raise",
) -> Record:
    """One WFDB record, resampled if needed, with the marks of one annotator.

    Resampling is SciPy's polyphase filter; marks move to the nearest step.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from spiketide.data import read_record
        >>> folder = pathlib.Path(tempfile.mkdtemp())                       # a record of 2 s: 1000 is 1 mV
        >>> _ = (folder / "rec.hea").write_text("rec 1 500 1000\\nrec.dat 16 1000/mV 16 0 0 0 0 II\\n")
        >>> (1000 * np.sin(np.arange(1000) / 10)).astype("<i2").tofile(folder / "rec.dat")
        >>> signal, rate, annotations = read_record(folder / "rec", channels=["II"])
        >>> signal.shape, rate, annotations
        ((500, 1), 250.0, None)

    Args:
        path: of the record, without an ending or with ``.hea``; on disk, nothing is downloaded.
        channels: numbers from 0 or names of the leads wanted, in this order; ``None``: all.
        rate: samples a second (Hz) wanted; ``None``: those of the record.
        annotator: ending of the file of marks, such as ``"pu0"`` (automatic) or ``"q1c"`` (by hand) in the QT database;
            ``None``: no marks.
        gaps: what to do with samples that the record marks as missing: ``"raise"``, or a straight line across.

    Raises:
        ParameterError: a rate that is not above 0 or has no simple ratio to the record's, or an unknown value of ``gaps``.
        DataError: the record or the marks are missing or broken, a lead is not in it, samples are missing, or wfdb is not
        installed.

    Reference:
        The WFDB format of PhysioNet, read by the ``wfdb`` package (``pip install 'spiketide[ecg]'``).
    """
    if gaps not in ("raise", "interpolate"):
        raise ParameterError(unknown("gaps", gaps, ("raise", "interpolate")))
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ParameterError(f"read_record expected a rate above 0 Hz, or None, got {rate!r}.")
    wfdb = _wfdb()
    base = Path(path)
    base = base.with_suffix("") if base.suffix == ".hea" else base
    header = base.with_name(base.name + ".hea")
    if not header.is_file():
        raise DataError(
            f"read_record expected {header}, and it is not there: is the path that of the record?"
        )
    try:
        with _quiet():
            record = wfdb.rdrecord(str(base))
    except Exception as problem:  # the package fails on broken files in many ways
        raise DataError(
            f"{base} is not a whole WFDB record ({type(problem).__name__}: {problem}). Copy its files again."
        ) from problem
    if record.p_signal is None or record.p_signal.size == 0:
        raise DataError(f"{base} has no samples.")
    signal = np.asarray(record.p_signal, dtype=np.float64)
    signal = signal[:, _leads(channels, list(record.sig_name), base)]
    signal = _without_gaps(signal, gaps, base)
    own = float(record.fs)
    marks = None if annotator is None else _marks(wfdb, base, annotator)
    if rate is not None and rate != own:
        up, down = _ratio(rate, own)
        from scipy.signal import resample_poly

        signal = resample_poly(signal, up, down, axis=0, padtype="line")
        if marks is not None:
            nearest = np.rint(marks.samples * (up / down)).astype(np.int64)
            marks = Annotations(np.minimum(nearest, len(signal) - 1), marks.symbols)
    return Record(np.ascontiguousarray(signal), own if rate is None else float(rate), marks)


def wave_labels(
    annotations: Annotations, steps: int, rate: float, *, longest: float = 2.0
) -> NDArray[np.int64]:
    """The wave or segment that every step belongs to, from marks like those of the QT database.

    A wave is ``( peak )``: onset, peak, end. Its onset belongs to it, its end to what follows::

        P   onset to end of a p wave          QR  onset to peak of a beat     ST  end of a beat to the end of the t wave after it
        PQ  end of p to onset of the beat     RS  peak to end of it           TP  end of t to onset of the p wave after it

    What lies between two marks of another order, or lacks a mark, is unlabelled: no guess is made. A missing onset of ``t`` is
    no harm; ``u`` waves count as part of TP.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.wfdb_records import WAVES, Annotations, wave_labels
        >>> marks = Annotations(np.array([1, 2, 3, 4, 5, 6, 8, 9]), tuple("(p)(N)t)"))
        >>> [WAVES[n] if n >= 0 else "-" for n in wave_labels(marks, 10, 250.0)]
        ['-', 'P', 'P', 'PQ', 'QR', 'RS', 'ST', 'ST', 'ST', '-']

    Args:
        annotations: the marks.
        steps: length of the signal.
        rate: samples a second (Hz).
        longest: of a wave or segment (s): where marks are further apart, a beat in between was not annotated.

    Returns:
        ``(steps,)``: places in :data:`WAVES`, :data:`spiketide.types.UNLABELLED` where there is no label.

    Raises:
        ParameterError: sizes that are not above 0.
        ShapeError: as many symbols as samples are expected.
        DataError: marks that are not in order, or lie outside the signal.
    """
    if steps < 1 or not (rate > 0 and longest > 0):
        raise ParameterError(
            f"wave_labels expected steps, rate and longest above 0, got {steps}, {rate!r} and {longest!r}."
        )
    samples = np.asarray(annotations.samples)
    if samples.shape != (len(annotations.symbols),):
        raise ShapeError(
            f"wave_labels expected one symbol for each of the samples, got {len(annotations.symbols)} for {samples.shape}."
        )
    if len(samples) and (samples.min() < 0 or samples.max() >= steps or (np.diff(samples) < 0).any()):
        raise DataError(
            f"wave_labels expected marks in order of time, from 0 to {steps - 1}, got {samples.min()} to {samples.max()}: are "
            "signal and marks of one record and one rate?"
        )
    labels = np.full(steps, UNLABELLED, dtype=np.int64)

    def fill(name: str, begin: int | None, end: int | None) -> None:
        if begin is not None and end is not None and end - begin <= longest * rate:
            labels[begin:end] = WAVES.index(name)

    waves = _waves(samples.tolist(), annotations.symbols)
    for wave in waves:
        if wave.kind == "p":
            fill("P", wave.begin, wave.end)
        elif wave.kind == "beat":
            fill("QR", wave.begin, wave.peak)
            fill("RS", wave.peak, wave.end)
    names = {("p", "beat"): "PQ", ("beat", "t"): "ST", ("t", "p"): "TP"}
    for one, two in itertools.pairwise(waves):
        if (one.kind, two.kind) in names:
            fill(names[one.kind, two.kind], one.end, two.end if two.kind == "t" else two.begin)
    return labels


class _Wave(NamedTuple):
    kind: str
    begin: int | None
    peak: int
    end: int | None


def _waves(samples: list[int], symbols: Sequence[str]) -> list[_Wave]:
    """Peaks with the onset before and the end after them; ``u`` waves are left out, two peaks of one ``t`` wave are one."""
    waves: list[_Wave] = []
    begin: int | None = None
    open_ = False  # the last wave waits for its end
    for sample, symbol in zip(samples, symbols, strict=True):
        if symbol == "(":
            begin, open_ = sample, False
        elif symbol == ")":
            if open_:
                waves[-1] = waves[-1]._replace(end=sample)
            begin, open_ = None, False
        elif symbol in _BEATS or symbol in ("p", "t", "u"):
            kind = "beat" if symbol in _BEATS else symbol
            if not (open_ and waves[-1].kind == kind == "t"):  # a biphasic wave has two peaks
                waves.append(_Wave(kind, begin, sample, None))
            begin, open_ = None, True
    return [wave for wave in waves if wave.kind != "u"]


def _leads(channels: Sequence[int | str] | None, names: list[str], base: Path) -> list[int]:
    if channels is None:
        return list(range(len(names)))
    if isinstance(channels, (int, str)) or not len(channels):
        raise ParameterError(
            f"read_record expected a list of leads, such as [0] or ['II'], got {channels!r}."
        )
    places = []
    for lead in channels:
        if isinstance(lead, str) and lead not in names:
            raise DataError(f"{base}: {unknown('lead', lead, names)}")
        place = names.index(lead) if isinstance(lead, str) else int(lead)
        if not 0 <= place < len(names):
            raise DataError(f"{base} has the leads 0 to {len(names) - 1} ({', '.join(names)}), got {lead}.")
        places.append(place)
    return places


def _without_gaps(signal: NDArray[np.float64], gaps: str, base: Path) -> NDArray[np.float64]:
    missing = ~np.isfinite(signal)
    if not missing.any():
        return signal
    if gaps == "raise" or missing.all(0).any():
        first = int(missing.any(1).argmax())
        raise DataError(
            f"{base} has {int(missing.sum())} missing samples, the first at {first}"
            f"{', and a lead of nothing else' if missing.all(0).any() else ''}: choose other channels"
            f"{', or gaps=' + repr('interpolate') if gaps == 'raise' else ''}."
        )
    signal = signal.copy()
    time = np.arange(len(signal))
    for lead in range(signal.shape[1]):
        there = ~missing[:, lead]
        signal[:, lead] = np.interp(time, time[there], signal[there, lead])
    return signal


def _marks(wfdb: Any, base: Path, annotator: str) -> Annotations:
    path = base.with_name(f"{base.name}.{annotator}")
    if not path.is_file():
        others = sorted(it.suffix[1:] for it in base.parent.glob(base.name + ".*"))
        raise DataError(
            f"read_record expected the marks {path}, and they are not there; there are {', '.join(others)}."
        )
    try:
        with _quiet():
            marks = wfdb.rdann(str(base), annotator)
    except Exception as problem:
        raise DataError(
            f"{path} is not a whole file of marks ({type(problem).__name__}: {problem}). Copy it again."
        ) from problem
    return Annotations(np.asarray(marks.sample, dtype=np.int64), tuple(marks.symbol))


def _ratio(rate: float, own: float) -> tuple[int, int]:
    ratio = (Fraction(rate) / Fraction(own)).limit_denominator(1000)
    if ratio == 0 or abs(float(ratio) * own / rate - 1) > 1e-9 or ratio.numerator > 1000:
        raise ParameterError(
            f"read_record expected a rate in a simple ratio to the record's {own:g} Hz, got {rate!r}: round it."
        )
    return ratio.numerator, ratio.denominator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what pandas says to wfdb about its future."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _wfdb() -> Any:
    try:
        with _quiet():
            import wfdb
    except ImportError as problem:
        raise DataError(
            "WFDB records are read with wfdb, which is not installed: pip install 'spiketide[ecg]'"
        ) from problem
    return wfdb
