"""A trained network on a stream: steps go in as they come, labels come out."""

from __future__ import annotations

import copy
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..encoders import LevelCrossing
from ..errors import DataError, NonFiniteError, ParameterError, RunError, ShapeError
from ..lateral import Normalized, NormalizedReadout
from ..layer import unstreamable
from ..neurons import Neuron
from ..types import State
from .classification import Classification
from .folder import RunFolder
from .labelling import Labelling
from .running import RunningReadout
from .task import Task

log = logging.getLogger("spiketide")

DOUBLE = ("64", "64-true")
"""``--trainer.precision`` of a network that was trained in float64."""


class Streamer:
    """The network of a task, fed a few steps at a time; its state goes on from call to call.

    Of :class:`.Labelling`, each step gets the label of that step. Of :class:`.Classification`, it gets the class that the
    read-out names from all steps so far: ``readout.evolve``, at a cost that does not grow.

    However the steps are cut into calls, the labels are those of the whole sequence at once. (The scores agree up to rounding: a
    matrix product of one row and of many rows adds in another order. Another label or spike could come of it only where two
    scores, or a membrane and its threshold, are that close.)

    Example:
        >>> import torch
        >>> from spiketide import Dense, LeakyIntegrator, LIF
        >>> from spiketide.training import Labelling
        >>> from spiketide.training.stream import Streamer
        >>> _ = torch.manual_seed(0)
        >>> task = Labelling([Dense(2, 8), LIF(8, threshold=0.2), Dense(8, 3), LeakyIntegrator(3)])
        >>> x = torch.rand(50, 2).numpy()
        >>> whole, steps = Streamer(task), Streamer(task)
        >>> bool((whole(x)[0] == [steps(row[None])[0][0] for row in x]).all())
        True

    Shapes:
        a call takes ``x (n, *N)``, in the precision of the network, to which other numbers are converted, and gives labels
        ``(n,)`` and the probabilities of the classes ``(n, C)``, float64 of a float64 network, else float32.

    Args:
        task: what was trained; it is copied as it is now.

    Raises:
        ParameterError: another task, a read-out that needs more of the past than a number (see :data:`.running.RUNNING`), a
            network that cannot stream, or an encoder of static data.
        ShapeError, NonFiniteError: input of another shape, or with NaN or infinity.
    """

    def __init__(self, task: Task) -> None:
        if not isinstance(task, (Labelling, Classification)):
            raise ParameterError(
                f"a stream is labelled as it comes, but this task is {type(task).__name__}: train with "
                "spiketide.training.Labelling or Classification."
            )
        if (part := unstreamable(task.network, training=False)) is not None:
            why = getattr(part, "exempt", {}).get("streaming", "it goes on behind the end")
            raise ParameterError(
                f"{type(part).__name__} needs the whole sequence at once ({why}): this network cannot label a stream. Train one "
                "whose parts know the past only: convolutions with padding='causal' and a stride of 1 in time, delays with "
                "tail=0, nothing bidirectional."
            )
        self.running = RunningReadout(task.readout) if isinstance(task, Classification) else None
        self.task = copy.deepcopy(task).eval()
        with torch.no_grad():
            _prepare(self.task.network)
        values = chain(task.network.parameters(), task.network.buffers())
        self.dtype = next((value.dtype for value in values if value.is_floating_point()), torch.float32)
        self.state: State | None = None
        self.steps = 0

    def __call__(self, x: ArrayLike | Tensor) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        """Labels and probabilities of the next steps."""
        scores = self.scores(x)
        probabilities = torch.from_numpy(scores).softmax(-1).numpy()
        return scores.argmax(-1) if scores.size else np.zeros(0, np.int64), probabilities

    def scores(self, x: ArrayLike | Tensor) -> NDArray[np.floating[Any]]:
        """The scores of the next steps ``(n, C)``: what the labels are the largest of."""
        steps = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).to(self.dtype)
        if steps.dim() < 2:
            raise ShapeError(f"a stream expected steps (n, *N), got {tuple(steps.shape)}.")
        if not len(steps):
            return np.zeros((0, 0), np.float32)
        if not bool(torch.isfinite(steps).all()):
            bad = int((~torch.isfinite(steps)).flatten(1).any(1).nonzero()[0])
            raise NonFiniteError(
                f"step {self.steps + bad} of the stream has NaN or infinity; nothing of this call was taken in."
            )
        with torch.inference_mode():
            coded = steps.unsqueeze(1)
            if self.task.encoder is not None:
                coded = self.task.encoder(coded)
                if coded.shape[:2] != (len(steps), 1):
                    raise ParameterError(
                        f"{type(self.task.encoder).__name__} makes {coded.shape[0]} steps of its own from static data, and those "
                        "come in no stream."
                    )
            y, self.state = self.task.network(coded, self.state)
            if y.dim() != 3:
                raise ShapeError(
                    f"a stream expected a network that gives one score a class (T, B, C), got {tuple(y.shape)}."
                )
            scores = y[:, 0] if self.running is None else self.running(y[:, 0])
        self.steps += len(steps)
        return (scores if scores.dtype == torch.float64 else scores.float()).numpy()

    def reset(self) -> None:
        """Begin another sequence."""
        self.state, self.steps = None, 0
        if self.running is not None:
            self.running.reset()


def _prepare(network: nn.Module) -> None:
    """Work out once what depends on the parameters alone; at every step it would cost more than the step itself."""
    for module in network.modules():
        if isinstance(module, Neuron):
            module.coefs = functools.partial(_given, _fixed(module.coefs()))  # type: ignore[method-assign]
    for module in network.modules():
        if isinstance(module, (Normalized, NormalizedReadout)):
            parameters, feedback = module.prepared()
            # channels last in memory: as a convolution of time and space wants its weights
            forms = {4: torch.channels_last, 5: torch.channels_last_3d}
            plain = {
                name: value.contiguous(memory_format=forms.get(value.dim(), torch.contiguous_format))
                for name, value in parameters.items()
            }
            module.prepared = functools.partial(_given, (plain, feedback))  # type: ignore[method-assign]


def _fixed(coefs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in coefs)


def _given(values: Any) -> Any:
    return values


class Labelled(NamedTuple):
    """One step of a stream: its number, its class, and how probable the network finds it."""

    step: int
    label: int
    probability: float


def open_stream(folder: RunFolder) -> tuple[Streamer, Any]:
    """The best checkpoint of a run as a :class:`Streamer`, and its data module for the names.

    Raises:
        RunError: no checkpoint yet.
        ParameterError: a task or network that cannot stream.
    """
    task, data = trained(folder)
    return Streamer(task), data


def trained(folder: RunFolder) -> tuple[Task, Any]:
    """The best checkpoint of a run, and its data module.

    Raises:
        RunError: no checkpoint yet.
    """
    from .run import load

    if not folder.best.is_file():
        raise RunError(f"{folder.path} has no best checkpoint yet: train it first.")
    built = load(folder).build()
    if str(built.trainer["precision"]) in DOUBLE:
        built.model.double()  # as the trainer had it
    folder.fill(built.model)
    return built.model, built.data


def label_stream(
    streamer: Streamer, rows: Iterable[ArrayLike], *, chunk: int = 1, code: LevelCrossing | None = None
) -> Iterator[Labelled]:
    """Label rows as they come.

    Args:
        streamer: the network.
        rows: one array ``(N,)`` a step.
        chunk: rows that are collected before the network runs; 1: each at once. The labels do not depend on it.
        code: turns the rows, which are then samples of a signal, into up and down events, channel by channel (up, down), as it
            does for the whole signal. With ``mode="difference"`` a step is labelled when its successor has come.

    Raises:
        ParameterError: a code that needs the whole signal (smoothing or normalisation).
    """
    if chunk < 1:
        raise ParameterError(f"label_stream expected a chunk of 1 or more steps, got {chunk!r}.")
    source = iter(rows) if code is None else _events(iter(rows), code, chunk)
    step = 0
    while block := list(islice(source, chunk)):
        labels, probabilities = streamer(np.stack([np.asarray(row) for row in block]))
        for label, row in zip(labels.tolist(), probabilities, strict=True):
            yield Labelled(step, label, float(row[label]))
            step += 1


def _events(rows: Iterator[ArrayLike], code: LevelCrossing, chunk: int) -> Iterator[NDArray[np.float32]]:
    """The code of a signal that comes in pieces."""
    stream = code.stream()
    while block := list(islice(rows, chunk)):
        yield from stream(np.stack([np.asarray(row, dtype=np.float64).reshape(-1) for row in block]))
    yield from stream.end()


def read_rows(
    lines: TextIO | Iterable[str], *, columns: int, hint: str = "", shape: tuple[int, ...] | None = None
) -> Iterator[NDArray[np.float64]]:
    """Rows of numbers from lines of text: separated by semicolons, else by commas, else by blanks.

    With semicolons a comma is a decimal point. Empty lines are skipped, and so is a first line without any number, with a word
    about it in the log.

    Args:
        lines: text.
        columns: numbers in a line.
        hint: added to the message about another number of them.
        shape: what each row is given as, the numbers along its last axis side by side; ``None``: ``(columns,)``.

    Raises:
        DataError: a line that does not hold ``columns`` finite numbers; it is named.
    """
    first = True
    for number, line in enumerate(lines, 1):
        line = line.lstrip("\ufeff") if number == 1 else line
        if not line.strip():
            continue
        cells = _cells(line)
        values = [_number(cell) for cell in cells]
        if first and all(value is None for value in values):
            log.info(
                "line %d of the stream holds no number and is taken for a header: %s",
                number,
                line.strip()[:60],
            )
            first = False
            continue
        first = False
        bad = next((cell for cell, value in zip(cells, values, strict=True) if value is None), None)
        if bad is not None:
            what = f"{bad!r}, which is no number" if bad else "an empty cell"
            raise DataError(f"line {number} of the stream has {what}: {line.strip()[:60]!r}.")
        row = np.array(values, dtype=np.float64)
        if len(row) != columns:
            raise DataError(
                f"line {number} of the stream has {len(row)} numbers, expected {columns}: {line.strip()[:60]!r}.{hint}"
            )
        if not np.isfinite(row).all():
            raise DataError(
                f"line {number} of the stream has NaN or infinity: {line.strip()[:60]!r}. Fill gaps before, for example "
                "with the last value."
            )
        yield row if shape is None else row.reshape(shape)


def _cells(line: str) -> list[str]:
    if ";" in line:
        return [cell.strip().replace(",", ".") for cell in line.split(";")]
    return [cell.strip() for cell in line.split(",")] if "," in line else line.split()


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def segments(labelled: Iterable[Labelled]) -> Iterator[tuple[int, int, int]]:
    """Runs of one label as ``(first step, steps, label)``, each when it has ended.

    Example:
        >>> from spiketide.training.stream import Labelled, segments
        >>> list(segments([Labelled(0, 1, 0.9), Labelled(1, 1, 0.8), Labelled(2, 0, 0.9)]))
        [(0, 2, 1), (2, 1, 0)]
    """
    begin = steps = label = -1
    for item in chain(labelled, [Labelled(-1, -2, 0.0)]):
        if item.label == label:
            steps += 1
            continue
        if begin >= 0:
            yield begin, steps, label
        begin, steps, label = item.step, 1, item.label


@contextmanager
def opened(name: str) -> Iterator[Iterable[str]]:
    """The lines of a text file, or of standard input for ``-``.

    Raises:
        DataError: the file cannot be read.
    """
    if name == "-":
        yield sys.stdin
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open(encoding="utf-8"))
        except FileNotFoundError as problem:
            raise DataError(f"there is no file {name}; - means standard input.") from problem
        except OSError as problem:
            raise _not_text(name, problem) from problem
        yield _lines(name, file)


def _lines(name: str, file: TextIO) -> Iterator[str]:
    """Errors of reading are the file's; those of whoever writes the results are not."""
    try:
        yield from file
    except (OSError, UnicodeDecodeError) as problem:
        raise _not_text(name, problem) from problem


def _not_text(name: str, problem: Exception) -> DataError:
    return DataError(f"{name} cannot be read as text: {problem}. Give rows of numbers, one a step.")


def stream_lines(
    folder: RunFolder,
    lines: Iterable[str],
    *,
    say: Callable[[str], None],
    chunk: int = 1,
    threshold: float | None = None,
    mode: str = "difference",
    segmented: bool = False,
) -> dict[str, Any]:
    """Label lines of text with the best checkpoint of a run, and say each label as soon as it is known.

    Args:
        folder: the run.
        lines: rows of numbers: the inputs of the network, or with ``threshold`` the samples of a signal.
        say: takes a line of the answer: ``step,class,probability``, or with ``segmented`` ``first step,steps,class``.
        chunk: rows that are collected before the network runs.
        threshold: of the level crossing that turns samples into events; ``None``: the rows are events already.
        mode: kind of the level crossing.
        segmented: a line a run of one label.

    Returns:
        ``steps``, ``seconds``, ``microseconds`` a step, and ``share`` of each class.
    """
    streamer, data = open_stream(folder)
    names = data.class_names
    inputs = math.prod(data.sample_shape)
    code = None if threshold is None else LevelCrossing(threshold=threshold, mode=mode)  # type: ignore[arg-type]
    if code is not None and inputs % 2:
        raise ParameterError(
            f"level crossing gives two channels a signal, but this network has {inputs} inputs."
        )
    if code is None:
        shape = (
            ""
            if len(data.sample_shape) < 2
            else f" (frames {tuple(data.sample_shape)}, channel after channel)"
        )
        hint = f" This network takes {inputs} inputs a step; samples of {inputs // 2} signals need --level-crossing L."
        hint = shape or (hint if inputs % 2 == 0 else "")
        rows = read_rows(lines, columns=inputs, hint=hint, shape=tuple(data.sample_shape))
    else:
        hint = f" With level crossing a row has one sample of each of {inputs // 2} signals, which become {inputs} inputs."
        rows = read_rows(lines, columns=inputs // 2, hint=hint)
    began = time.perf_counter()
    counts = dict.fromkeys(names, 0)

    def counted() -> Iterator[Labelled]:
        for item in label_stream(streamer, rows, chunk=chunk, code=code):
            counts[names[item.label]] += 1
            yield item

    if segmented:
        say("first,steps,class")
        for first, steps, label in segments(counted()):
            say(f"{first},{steps},{names[label]}")
    else:
        say("step,class,probability")
        for item in counted():
            say(f"{item.step},{names[item.label]},{item.probability:.4f}")
    seconds = time.perf_counter() - began
    if not streamer.steps:
        raise DataError("the stream held no row of numbers: nothing was labelled.")
    steps = max(1, streamer.steps)
    return {
        "run": str(folder.path),
        "steps": streamer.steps,
        "seconds": round(seconds, 3),
        "microseconds": round(seconds / steps * 1e6, 1),
        "share": {name: count / steps for name, count in counts.items()},
    }
