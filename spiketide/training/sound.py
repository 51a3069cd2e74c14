"""A trained network that listens: samples go in as they come, what it takes them for comes out."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import wave as wave_format
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.clips import one_second
from ..data.fsdd import FSDDClips, placed
from ..data.speech_commands import SpeechCommands
from ..data.streaming_mel import CausalFrontEnd, FrameStream
from ..encoders import resample as resampled
from ..errors import DataError, ParameterError
from .folder import RunFolder
from .stream import Streamer, trained

log = logging.getLogger("spiketide")

FULL_SCALE = 0.999
"""A sample beyond this share of the largest value counts as clipped."""

CLIPPED = 0.01
"""Share of clipped samples from which a warning is logged."""


class Heard(NamedTuple):
    """What the network says after a frame: the frame's number, the class, the probabilities of all, and how long it took."""

    frame: int
    label: int
    probabilities: NDArray[np.float32]
    milliseconds: float

    @property
    def probability(self) -> float:
        """Of the class."""
        return float(self.probabilities[self.label])


def hear(
    streamer: Streamer,
    front: FrameStream,
    blocks: Iterable[NDArray[np.floating[Any]]],
    *,
    restart: int | None = None,
) -> Iterator[Heard]:
    """Classify sound as it comes.

    The time of a frame is that of the front end and the network, from when its samples are there; a block that completes several
    frames shares its time between them, one that completes none leaves it to the next.

    Example:
        >>> import numpy as np, torch
        >>> from spiketide import Dense, LIF, LeakyIntegrator
        >>> from spiketide.data import StreamingMel
        >>> from spiketide.readouts import MeanMembrane
        >>> from spiketide.training import Classification
        >>> from spiketide.training.sound import hear
        >>> from spiketide.training.stream import Streamer
        >>> front = StreamingMel(sample_rate=8000)
        >>> task = Classification([Dense(120, 8), LIF(8), Dense(8, 3), LeakyIntegrator(3)], MeanMembrane())
        >>> blocks = np.random.default_rng(0).normal(scale=0.1, size=(50, 100))       # any iterator of samples
        >>> heard = list(hear(Streamer(task), front.stream(), blocks))
        >>> len(heard), heard[-1].frame
        (62, 61)

    Args:
        streamer: the network.
        front: where the frames come from.
        blocks: pieces of the sound, of any length.
        restart: network and read-out begin anew after every so many frames; the front end does not.

    Raises:
        ParameterError: no stream of a front end, one array in place of blocks, or samples that are integers.
        ShapeError, NonFiniteError: as the front end and the network.
    """
    if not isinstance(front, FrameStream):
        raise ParameterError(
            f"hear expected the stream of a front end that knows the past only, StreamingMel(...).stream(), got "
            f"{type(front).__name__}."
        )
    if isinstance(blocks, np.ndarray) and blocks.ndim == 1:
        raise ParameterError(
            "hear expected blocks of samples one after the other, got one array: give it as [wave]."
        )
    number, waiting = 0, 0.0
    for block in blocks:
        if not np.issubdtype(np.asarray(block).dtype, np.floating):
            raise ParameterError(
                f"hear expected samples as floats in [-1, 1], got {np.asarray(block).dtype}: of 16-bit sound divide by 32768."
            )
        began = time.perf_counter()
        frames = front(block)
        if not len(frames):
            waiting += time.perf_counter() - began
            continue
        found = []
        while len(frames):
            count = len(frames) if restart is None else restart - streamer.steps
            found += list(zip(*streamer(frames[:count]), strict=True))
            frames = frames[count:]
            if restart is not None and streamer.steps >= restart:
                streamer.reset()
        each = (waiting + time.perf_counter() - began) / len(found) * 1e3
        waiting = 0.0
        for label, row in found:
            yield Heard(number, int(label), row, each)
            number += 1


def listener(folder: RunFolder) -> tuple[Streamer, CausalFrontEnd, Any]:
    """The best checkpoint of a run as a :class:`.Streamer`, its front end, and its data module.

    Raises:
        RunError: no checkpoint yet.
        ParameterError: front end or network know the future; the message names both and says what to do.
    """
    task, data = trained(folder)
    front, problems, streamer = getattr(data, "features", None), [], None
    if not isinstance(front, CausalFrontEnd):
        what = "no front end for sound" if front is None else f"the front end {type(front).__name__}"
        problems.append(
            f"its data ({type(data).__name__}) have {what}, and live sound needs one that knows the past only: train with "
            "--data.features spiketide.data.StreamingMel (FSDDClips and SpeechCommands take it), and again its sample_rate and "
            "flatten, which another class does not take over (--data.features.sample_rate 8000 --data.features.flatten false)."
        )
    try:
        streamer = Streamer(task)
    except ParameterError as problem:
        problems.append(str(problem))
    if problems or streamer is None:
        raise ParameterError(
            f"{folder.path} cannot listen: "
            + " And ".join(problems)
            + " The recipe fsdd/live_conv is one that listens."
        )
    return streamer, front, data  # type: ignore[return-value]


def read_sound(
    path: Path, rate: int, *, channel: int | None = None, resample: bool = False
) -> NDArray[np.float32]:
    """One channel of a sound file, in [-1, 1].

    A file in which at least 1 % of the samples are at full scale, or all are zero, or whose header promises more than there is,
    is read with a warning in the log.

    Args:
        path: any format that soundfile reads (wav, flac, ogg, ...).
        rate: samples a second (Hz) that are wanted.
        channel: which one, counted from 1, of a file that has several.
        resample: turn another rate into the wanted one.

    Raises:
        DataError: no such file, broken, empty, not finite, of another rate, or of several channels and none chosen; soundfile
            is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as problem:
        raise DataError(
            "Sound is read with soundfile, which is not installed: pip install 'spiketide[audio]'"
        ) from problem
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        sound, given = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError) as problem:
        raise DataError(f"{path} cannot be read as sound: {problem}") from problem
    channels = sound.shape[1]
    if channel is None and channels > 1:
        raise DataError(
            f"{path} has {channels} channels, expected one: choose with --channel 1 to {channels}."
        )
    if channel is not None and not 1 <= channel <= channels:
        raise DataError(f"{path} expected a channel from 1 to {channels}, got {channel}.")
    wave = np.ascontiguousarray(sound[:, (channel or 1) - 1])
    if not len(wave):
        raise DataError(f"{path} holds no samples.")
    if not np.isfinite(wave).all():
        raise DataError(f"{path} holds NaN or infinity: export it again from what made it.")
    if given != rate and not resample:
        raise DataError(
            f"{path} has {given} samples a second, this network was trained on {rate}: add --resample, or convert the file."
        )
    _warn(path, wave)
    return wave if given == rate else resampled(wave, int(given), rate)


def _warn(path: Path, wave: NDArray[np.float32]) -> None:
    loudest = float(np.abs(wave).max())
    clipped = float((np.abs(wave) >= FULL_SCALE).mean())
    if loudest > 2.0:
        log.warning(
            "%s has samples up to %g, expected -1 to 1: if they are 16-bit numbers, divide them by 32768 first.",
            path,
            loudest,
        )
    elif clipped >= CLIPPED:
        log.warning(
            "%s is clipped: %.0f %% of its samples are at full scale, which network and front end take as they are.",
            path,
            100 * clipped,
        )
    if not wave.any():
        log.warning("%s is silent: every sample is zero.", path)
    with contextlib.suppress(wave_format.Error, EOFError, OSError), wave_format.open(str(path), "rb") as file:
        width = file.getsampwidth() * file.getnchannels()
        promised = file.getnframes()
        # a pipe writes the largest number it can, since it does not know yet
        if len(wave) < promised < 0x7FFFF000 // width:
            log.warning(
                "%s is truncated: its header promises %d samples, it has %d.", path, promised, len(wave)
            )


def pieces(wave: NDArray[np.float32], samples: int) -> Iterator[NDArray[np.float32]]:
    """A sound in blocks of so many samples; what is left behind the last whole one is a shorter block."""
    for begin in range(0, len(wave), samples):
        yield wave[begin : begin + samples]


def as_clip(data: Any, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """A recording placed in its clip, as the data set of a run does it.

    Raises:
        ParameterError: a data set without clips of one length.
    """
    if isinstance(data, FSDDClips):
        return placed(wave, data.samples)
    if isinstance(data, SpeechCommands):
        return one_second(wave, data.place)
    raise ParameterError(
        f"--clip is for data sets of clips (FSDDClips, SpeechCommands), this run has {type(data).__name__}: leave it out."
    )


def microphone(
    rate: int, samples: int, *, seconds: float | None = None, device: str | None = None
) -> Iterator[NDArray[np.float32]]:
    """Blocks of sound from a microphone, until Ctrl-C or for so many seconds.

    Args:
        rate: samples a second (Hz); the sound system converts where the device has another.
        samples: of a block.
        seconds: how long; ``None``: until it is stopped.
        device: name or number of the device, as ``python -m sounddevice`` lists them; ``None``: the default.

    Raises:
        ParameterError: ``seconds`` that are not above 0.
        DataError: the library sounddevice or PortAudio is missing, there is no such device, or it does not record at this rate.
    """
    if seconds is not None and not seconds > 0:
        raise ParameterError(f"--seconds expected a time above 0, got {seconds!r}.")
    try:
        import sounddevice
    except ImportError as problem:
        raise DataError(
            "A microphone is read with sounddevice, which is not installed: pip install 'spiketide[microphone]'"
        ) from problem
    except OSError as problem:  # the library is there, what it stands on is not
        raise DataError(
            f"sounddevice cannot be used ({problem}): install PortAudio (Debian, Ubuntu: apt install libportaudio2)."
        ) from problem
    chosen: Any = int(device) if device is not None and device.isdecimal() else device
    remedy = "`python -m sounddevice` lists the devices; choose one with --device, or give a file with --wav."
    try:
        stream = sounddevice.InputStream(
            samplerate=rate, blocksize=samples, channels=1, dtype="float32", device=chosen
        )
    except (sounddevice.PortAudioError, ValueError) as problem:
        raise DataError(
            f"no microphone at {rate} samples a second could be opened ({problem}). {remedy}"
        ) from problem
    return _recorded(stream, samples, math.inf if seconds is None else math.ceil(seconds * rate / samples))


def _recorded(stream: Any, samples: int, blocks: float) -> Iterator[NDArray[np.float32]]:
    with stream:
        left = blocks
        while left > 0:
            block, lost = stream.read(samples)
            if lost:
                log.warning("samples were lost: this machine is too slow, or busy.")
            yield block[:, 0].copy()
            left -= 1


def classify_file(
    folder: RunFolder,
    path: Path,
    *,
    say: Callable[[str], None],
    channel: int | None = None,
    resample: bool = False,
    clip: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Classify a sound file as if it came live; see :func:`classify`.

    Args:
        folder: the run.
        path: the file.
        say: takes a line of the answer.
        channel: see :func:`read_sound`.
        resample: see :func:`read_sound`.
        clip: place the recording in its clip first, as the data set does (silence around it, or its loudest part).
        **options: ``every``, ``restart`` of :func:`classify`.
    """
    streamer, front, data = listener(folder)
    wave = read_sound(path, front.sample_rate, channel=channel, resample=resample)
    wave = as_clip(data, wave) if clip else wave
    if len(wave) < front.hop:
        raise DataError(
            f"{path} has {len(wave)} samples, expected {front.hop} ({front.hop_ms:g} ms) at least, a frame of this network."
        )
    found = classify(streamer, front, pieces(wave, front.hop), data.class_names, say=say, **options)
    return {"run": str(folder.path), "file": str(path), **found}


def classify_microphone(
    folder: RunFolder,
    *,
    say: Callable[[str], None],
    seconds: float | None = None,
    device: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Classify what a microphone hears, until Ctrl-C or for so many seconds; see :func:`classify`."""
    streamer, front, data = listener(folder)
    blocks = microphone(front.sample_rate, front.hop, seconds=seconds, device=device)
    found = classify(streamer, front, blocks, data.class_names, say=say, live=True, **options)
    return {"run": str(folder.path), **found}


def classify(
    streamer: Streamer,
    front: CausalFrontEnd,
    blocks: Iterable[NDArray[np.floating[Any]]],
    names: tuple[str, ...],
    *,
    say: Callable[[str], None],
    every: int | None = None,
    restart: float | None = None,
    live: bool = False,
) -> dict[str, Any]:
    """Classify sound that comes in blocks, and say ``seconds,class,probability`` whenever the decision changes.

    ``seconds`` is the end of the frame after which the network says so. One thread computes, and compiled loops are ready before
    the first block is asked for.

    Args:
        streamer: the network.
        front: its front end.
        blocks: pieces of the sound: a file in pieces, a microphone, or any other iterator.
        names: of the classes.
        say: takes a line of the answer.
        every: also say it every so many frames.
        restart: begin anew after so many seconds: network and read-out forget what was before, the front end does not.
        live: Ctrl-C ends the sound, and is no interruption.

    Returns:
        ``frames``, ``seconds`` of sound, ``decision``, ``probability`` and ``probabilities`` after the last frame, and
        ``milliseconds`` a frame: ``mean`` and ``p99``.

    Raises:
        ParameterError: ``every`` below 1, or ``restart`` below a frame.
        DataError: not one whole frame came.
    """
    if every is not None and every < 1:
        raise ParameterError(f"--every expected 1 frame or more, got {every}.")
    seconds = front.hop / front.sample_rate
    if restart is not None and not restart >= seconds:
        raise ParameterError(f"--restart expected {seconds:g} seconds (one frame) or more, got {restart!r}.")
    segment = None if restart is None else round(restart / seconds)
    spent: list[float] = []
    last: Heard | None = None
    said = -1

    def tell(item: Heard) -> None:
        nonlocal said
        said = item.frame
        say(f"{(item.frame + 1) * seconds:.3f},{names[item.label]},{item.probability:.4f}")

    with one_thread():
        _warm_up(streamer, front)
        say("seconds,class,probability")
        try:
            for item in hear(streamer, front.stream(), blocks, restart=segment):
                spent.append(item.milliseconds)
                begins = last is None or (segment is not None and item.frame % segment == 0)
                ends = segment is not None and (item.frame + 1) % segment == 0
                shown = every is not None and (item.frame + 1) % every == 0
                if begins or ends or shown or (last is not None and item.label != last.label):
                    tell(item)
                last = item
        except KeyboardInterrupt:
            if not live:
                raise
    if last is None:
        raise DataError(
            f"the sound ended before the first frame was whole: expected {front.hop} samples ({front.hop_ms:g} ms) at least."
        )
    if said != last.frame:
        tell(last)
    mean, p99 = float(np.mean(spent)), float(np.percentile(spent, 99))
    say(f"decision  {names[last.label]}, probability {last.probability:.4f}")
    say(
        f"latency   {mean:.2f} ms a frame of {front.hop_ms:g} ms on one thread, 99 % of them within {p99:.2f} ms"
    )
    return {
        "frames": last.frame + 1,
        "seconds": round((last.frame + 1) * seconds, 6),
        "decision": names[last.label],
        "probability": last.probability,
        "probabilities": dict(zip(names, last.probabilities.tolist(), strict=True)),
        "milliseconds": {"mean": round(mean, 3), "p99": round(p99, 3)},
    }


def _warm_up(streamer: Streamer, front: CausalFrontEnd) -> None:
    """Some silence and some noise, for the sake of what is compiled or cached when it is first used; then all is forgotten."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=8 * front.hop)
    frames = front.stream()(np.concatenate([np.zeros(2 * front.hop), noise]))
    for frame in frames:
        streamer(frame[None])
    streamer.reset()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One frame is too little work to share; torch uses one thread until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
