"""What is wrong with a network, in words, from one batch.

Run it before training and whenever a loss does not fall::

    print(diagnose(model, batch, encoder=encoder))

It makes one forward and one backward in the mode in which the model is, and leaves the model as it was:
parameters, gradients, buffers and the random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .checkpointed import recomputing
from .errors import DataError, NonFiniteError, ShapeError, SpiketideError
from .layer import Layer, parameter_roles
from .losses import CrossEntropy
from .neurons.base import Neuron
from .plain import plain
from .probe import SATURATED_RATE, Records, activity, record
from .readouts import MeanMembrane
from .scan.dynamics import entry
from .timing import Network, OnlineNetwork, TimingCrossEntropy, TimingLayer, TimingLoss
from .types import UNLABELLED, Batch

SILENT_SHARE = 0.5
"""A layer is reported when more than this share of its neurons never fires on the batch."""

SATURATED_SHARE = 0.2
"""A layer is reported when more than this share of its neurons fires above ``probe.SATURATED_RATE``."""

VANISHING = 1e-3
"""Gradients vanish when the norm at a layer's output is below this part of the norm at the last layer."""

EXPLODING = 1e3
"""Gradients explode when a norm is above this multiple of that at the last layer, or this at a parameter."""

LARGE_INPUT = 10.0
"""Graded inputs beyond this are reported as not scaled."""

AT_ONCE, AT_ONCE_SHARE = 2.0, 0.8
"""A layer of first spikes is reported when more than this share of its spikes comes within so many steps."""

ENOUGH_SPIKES = 20
"""Spikes of a layer on the batch from which on this is judged."""

UNDECIDED_SHARE = 0.1
"""Reported when no output fires on more than this share of the batch."""


@dataclass(frozen=True)
class Row:
    """One layer: what it fired and what gradient reached it. ``None`` where a number does not exist.

    ``rate`` is in spikes per neuron and step, ``hz`` in spikes per neuron and second (by ``step_ms``, else their ``dt``
    taken as milliseconds), ``silent`` and ``saturated`` are shares of the neurons, ``output_gradient`` and
    ``parameter_gradient`` are L2 norms of the gradient of the loss, ``finite`` says whether outputs and
    parameters are all finite. In a network of first spikes (:func:`diagnose_first_spikes`) ``rate`` is in spikes per neuron
    and sample; ``median`` is the step of the median spike, and ``at_once`` the largest share of the spikes within two steps.
    """

    name: str
    kind: str
    rate: float | None = None
    hz: float | None = None
    silent: float | None = None
    saturated: float | None = None
    output_gradient: float | None = None
    parameter_gradient: float | None = None
    finite: bool = True
    median: float | None = None
    at_once: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Numbers of each layer, and messages in words. ``print`` it, or take ``to_dict()`` for JSON."""

    rows: list[Row] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    loss: float | None = None

    @property
    def healthy(self) -> bool:
        """True when there is nothing to say."""
        return not self.messages

    def to_dict(self) -> dict[str, Any]:
        """Plain types for ``json.dumps``; a number that is not finite becomes ``None``, and a message names it."""
        content = {
            "healthy": self.healthy,
            "loss": self.loss,
            "layers": [asdict(row) for row in self.rows],
            "messages": self.messages,
        }
        made: dict[str, Any] = plain(content)
        return made

    def __str__(self) -> str:
        columns: list[tuple[str, Callable[[Row], str]]] = [
            ("layer", lambda row: row.name),
            ("kind", lambda row: row.kind),
            ("rate", lambda row: _number(row.rate, ".4f")),
            *(FIRST_SPIKE_COLUMNS if any(row.at_once is not None for row in self.rows) else SPIKE_COLUMNS),
            ("|grad out|", lambda row: _number(row.output_gradient, ".2e")),
            ("|grad par|", lambda row: _number(row.parameter_gradient, ".2e")),
            ("finite", lambda row: "yes" if row.finite else "NO"),
        ]
        head = [title for title, _ in columns]
        body = [[cell(row) for _, cell in columns] for row in self.rows]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = []
        for line in [head, *body] if body else []:
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        if self.loss is not None:
            lines.append(f"loss {self.loss:.4g}")
        lines += [f"- {message}" for message in self.messages] or ["- nothing wrong found"]
        return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


SPIKE_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("Hz", lambda row: _number(row.hz, ".1f")),
    ("silent", lambda row: _number(row.silent, ".0%")),
    ("saturated", lambda row: _number(row.saturated, ".0%")),
]
"""What the table says of spike trains."""

FIRST_SPIKE_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("silent", lambda row: _number(row.silent, ".0%")),
    ("median step", lambda row: _number(row.median, ".1f")),
    ("at once", lambda row: _number(row.at_once, ".0%")),
]
"""What it says of first spikes."""


def diagnose(
    model: nn.Module,
    batch: Batch,
    *,
    encoder: nn.Module | None = None,
    readout: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    step_ms: float | None = None,
) -> Diagnosis:
    """Run one forward and backward and say what is wrong.

    Example:
        >>> import torch
        >>> from spiketide.compose import Sequential
        >>> from spiketide.diagnose import diagnose
        >>> from spiketide.neurons import LIF, LeakyIntegrator
        >>> from spiketide.synapses import Dense
        >>> from spiketide.types import Batch
        >>> _ = torch.manual_seed(0)
        >>> hidden = Dense(4, 8), LIF(8, threshold=1e6)
        >>> model = Sequential(*hidden, Dense(8, 2), LeakyIntegrator(2, tau_mem=20.0))
        >>> batch = Batch(torch.rand(10, 3, 4), torch.tensor([0, 1, 1]))
        >>> diagnose(model, batch).messages[0]  # doctest: +ELLIPSIS
        'layer 1 (LIF): 100 % of the neurons never fire on this batch: raise the gain...'

    Args:
        model: The network; called as ``model(x, lengths=lengths)`` when it is a Layer, else as ``model(x)``.
            Its output is ``(T, B, C)``, alone or first of a tuple, or scores ``(B, C)`` when it has its own
            read-out. A task (:mod:`spiketide.training`) stands for its network, encoder, read-out and loss.
        batch: A batch as the data modules give it, with labels ``(B,)``, or ``(T, B)`` for labels of steps: there is no loss
            without.
        encoder: Makes the time axis of static data.
        readout: From ``(T, B, C)`` and lengths to what the loss takes; default :class:`spiketide.readouts.MeanMembrane`, or
            every step by itself where the labels are of steps.
        loss: ``loss(scores, y)``; default :class:`spiketide.losses.CrossEntropy`, over the labelled steps where the labels
            are of steps.
        step_ms: Milliseconds of a step of the data, for the rates in Hz; default the neurons' ``dt``.

    Raises:
        ShapeError: no batch; the input has no time axis and there is no encoder, or the output is neither of the
            two forms.
        DataError: the batch is empty.
    """
    _check_batch("diagnose", batch)
    if all(hasattr(model, part) for part in ("network", "encoder", "scores", "criterion")):
        task: Any = model
        if isinstance(task.network, Network):
            return diagnose_first_spikes(task.network, batch, encoder=encoder or task.encoder, loss=task.loss)
        model, encoder = task.network, encoder or task.encoder
        readout, loss = readout or task.scores, loss or task.criterion
    messages = _about_input(batch.x)
    if not bool(batch.x.isfinite().all()):
        return Diagnosis(messages=messages)  # every number after this would be NaN

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    value, gradients, stopped = None, {}, ""
    heard: Passed = {}
    given: Passed = {}
    watched = [
        handle
        for module in model.modules()
        if isinstance(module, Neuron)
        for handle in (
            module.register_forward_pre_hook(lambda module, args: _note(heard, module, args)),
            module.register_forward_hook(lambda module, args, output: _note(given, module, output)),
        )
    ]
    try:
        with torch.random.fork_rng(list(devices)), torch.enable_grad(), record(model) as records:
            x = batch.x if encoder is None else encoder(batch.x)
            if encoder is not None and not messages and not bool((x != 0).any()):
                messages.append(
                    "input: the encoder gives no spike at all: lower its threshold or raise its rate."
                )
            try:
                out = model(x, lengths=batch.lengths) if isinstance(model, Layer) else model(x)
            except NonFiniteError as error:
                while isinstance(error.__cause__, NonFiniteError):
                    error = error.__cause__  # what the layer itself said: its name is found out below
                stopped = str(error)
            else:
                y = out[0] if isinstance(out, tuple) else out
                if y.dim() not in (2, 3):
                    raise ShapeError(
                        "diagnose expected the model to give (T, B, C), or scores (B, C), got "
                        f"{tuple(y.shape)}: flatten feature maps before the last layer."
                    )
                ends = model.lengths_after(batch.lengths) if isinstance(model, Layer) else batch.lengths
                by_step = y.dim() == 3 and batch.y.dim() == 2
                read = readout or (_every_step if by_step else MeanMembrane())
                scores = read(y, ends) if y.dim() == 3 else y
                value = (loss or (_loss_of_steps if by_step else CrossEntropy()))(scores, batch.y)
                passed = [x for tensors in (*heard.values(), *given.values()) for x in tensors]
                gradients = _gradients(value, [*records.values(), *passed, *model.parameters()])
    finally:
        for handle in watched:
            handle.remove()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    rows = _rows(model, records, gradients, given, batch.lengths, (x.shape[0], step_ms))
    # NaN makes every other number meaningless, so nothing else is said about it.
    broken = _not_finite_parameters(model)
    if value is None:
        return Diagnosis(rows, messages + (broken or [_stopped(model, records, stopped)]))
    broken = broken or _not_finite(rows, value)
    if not broken:
        walls = _about_walls(rows, records, heard, gradients)
        messages += [*_about_firing(rows), *_about_training(model, gradients), *walls]
        messages += _about_gradients(rows, cut=bool(walls))
    messages += broken
    return Diagnosis(rows, messages, value.item())


def diagnose_first_spikes(
    network: Network, batch: Batch, *, encoder: nn.Module | None = None, loss: TimingLoss | None = None
) -> Diagnosis:
    """The same for a network whose neurons fire once at most: silent layers, layers that fire all at once, outputs that never do.

    Its scales should be those of training: call :func:`spiketide.timing.calibrate` first, as training does when a task has
    ``moments``.

    Example:
        >>> import torch
        >>> from spiketide.diagnose import diagnose_first_spikes
        >>> from spiketide.timing import Network, TimingLinear
        >>> from spiketide.types import Batch
        >>> net = Network(TimingLinear(4, 8), TimingLinear(8, 2))
        >>> net[0].set_weight(torch.full((8, 4), -1.0))
        >>> times = torch.tensor([[0.0, 5.0, 9.0, 20.0]])
        >>> diagnose_first_spikes(net, Batch(times, torch.tensor([0]))).messages[0]  # doctest: +ELLIPSIS
        'layer 0 (TimingLinear) is silent: none of its neurons fires on this batch...'

    Args:
        network: layers of spike times.
        batch: as the data modules give it; ``x`` holds spike times when there is no encoder.
        encoder: from data to spike times.
        loss: that of training; ``None`` is :class:`spiketide.timing.TimingCrossEntropy`.

    Raises:
        DataError: the batch is empty.
        ShapeError: no batch; the layers do not fit each other or the input.
    """
    _check_batch("diagnose_first_spikes", batch)
    broken = _not_finite_parameters(network)
    if encoder is not None:
        if messages := _about_input(batch.x):
            return Diagnosis(messages=messages)
        try:
            times = encoder(batch.x)
        except SpiketideError as error:
            return Diagnosis(messages=[f"input: {error}"])
    else:
        times = batch.x
    if bool(torch.isinf(times).all()):
        return Diagnosis(
            messages=["input: no spike at all: every value is below the threshold of the encoder. Lower it."]
        )
    if broken:
        return Diagnosis(messages=broken)
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)), torch.enable_grad():
        fired, seen = network.follow(times)
        value = (loss or TimingCrossEntropy())(network.output, fired, batch.y)
        gradients = _gradients(value, [*seen.values(), *network.parameters()])
    rows = [_first_spike_row(network, name, when, gradients) for name, when in seen.items()]
    messages = _not_finite(rows, value) or [
        *_about_first_spikes(network, rows, seen, batch.y),
        *([] if isinstance(network, OnlineNetwork) else _about_training(network, gradients, comparison="")),
    ]
    return Diagnosis(rows, messages, value.item())


def _every_step(y: Tensor, lengths: Tensor | None) -> Tensor:
    return y


def _loss_of_steps(scores: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over the labelled steps of ``scores (T, B, C)``, ``y (T, B)``."""
    if y.shape != scores.shape[:2] or y.dtype != torch.int64:
        raise ShapeError(
            f"diagnose expected labels (B,), or (T, B) int64 for labels of steps, {tuple(scores.shape[:2])}, got "
            f"{tuple(y.shape)} {y.dtype}."
        )
    labelled = y != UNLABELLED
    return CrossEntropy()(scores[labelled], y[labelled])


def _check_batch(word: str, batch: Batch) -> None:
    if not isinstance(getattr(batch, "x", None), Tensor):
        what = "a tensor" if isinstance(batch, Tensor) else f"{type(batch).__name__}"
        remedy = (
            "spiketide.Batch(*batch)"
            if isinstance(batch, (tuple, list))
            else "spiketide.Batch(x, y), y the labels"
        )
        raise ShapeError(
            f"{word} expected a spiketide.Batch of inputs x and labels y, without which there is no loss, got {what}: "
            f"pass {remedy}."
        )
    if batch.x.numel() == 0:
        raise DataError(f"{word} expected a batch with samples, got x of shape {tuple(batch.x.shape)}.")


Passed = dict[nn.Module, list[Tensor]]
"""What came into each neuron, or out of it, where a gradient is wanted."""


def _note(passed: Passed, module: nn.Module, tensors: Any) -> None:
    first = tensors[0] if isinstance(tensors, tuple) and tensors else None
    if isinstance(first, Tensor) and first.requires_grad and not recomputing():
        passed.setdefault(module, []).append(first)


def _first_spike_row(network: Network, name: str, times: Tensor, gradients: Gradients) -> Row:
    layer = network.get_submodule(name)
    fired = torch.isfinite(times)
    spikes = times.detach()[fired].double().sort().values
    at_once, median = None, None
    if len(spikes):
        # spikes from each one on to the last that is less than so many steps behind it
        ends = torch.searchsorted(spikes, spikes + AT_ONCE)
        at_once = int((ends - torch.arange(len(spikes), device=spikes.device)).max()) / len(spikes)
        median = float(spikes[len(spikes) // 2])
    own: list[Tensor] = list(layer.parameters())
    return Row(
        name,
        type(layer).__name__,
        rate=float(fired.double().mean()),
        silent=float((~fired.flatten(1).any(0)).double().mean()),
        output_gradient=_norm(gradients, [times]),
        parameter_gradient=_norm(gradients, own),
        finite=not bool(times.isnan().any()),
        median=median,
        at_once=at_once if at_once is not None else 0.0,
    )


def _about_first_spikes(network: Network, rows: list[Row], seen: dict[str, Tensor], y: Tensor) -> list[str]:
    messages = []
    for row in rows:
        layer = network.get_submodule(row.name)
        assert isinstance(layer, TimingLayer)
        count = int(torch.isfinite(seen[row.name]).sum())
        if not count:
            messages.append(
                f"{_layer(row)} is silent: none of its neurons fires on this batch, so no layer after it hears anything. Set its "
                "scale before training (moments), raise the mean of its weights, or lengthen its window (stop)."
            )
            break  # what comes after it cannot fire either
        if row.silent is not None and row.silent > SILENT_SHARE and layer is not network.output:
            messages.append(
                f"{_layer(row)}: {_percent(row.silent)} of the neurons never fire on this batch: set its scale before training "
                "(moments), or wake them while training (revive_below, such as 0.001)."
            )
        if count >= ENOUGH_SPIKES and row.at_once is not None and row.at_once > AT_ONCE_SHARE:
            messages.append(
                f"{_layer(row)} fires all at once: {_percent(row.at_once)} of its spikes come within {AT_ONCE:g} steps, around "
                f"step {row.median:.6g}, so that their times say nothing. Ask for a later moment, lower its scale, or spread "
                "the input over more steps."
            )
    else:
        messages += _about_outputs(rows[-1], seen[rows[-1].name], y)
    return messages


def _about_outputs(row: Row, times: Tensor, y: Tensor) -> list[str]:
    """Outputs that never fire although the batch has samples of their class, and samples without an output spike."""
    messages = []
    fired = torch.isfinite(times)
    there = set(y.unique().tolist())
    silent = [index for index in (~fired.any(0)).nonzero().flatten().tolist() if index in there]
    if silent:
        named = ", ".join(map(str, silent[:10])) + (" and others" if len(silent) > 10 else "")
        messages.append(
            f"{_layer(row)}: output{'s' if len(silent) > 1 else ''} {named} never fire{'' if len(silent) > 1 else 's'} on this "
            "batch, though it has samples of that class: give the loss an anchor (0.1), which calls a late right output earlier, "
            "or ask for an earlier moment of the last layer."
        )
    undecided = float((~fired.any(1)).double().mean())
    if undecided > UNDECIDED_SHARE:
        messages.append(
            f"{_layer(row)}: on {_percent(undecided)} of the batch no output fires, and potentials decide: ask for an earlier "
            "moment of the last layer, lengthen its window (stop), or give the loss an anchor (0.1)."
        )
    return messages


Gradients = dict[int, Tensor | None]
"""Gradient of the loss by ``id`` of a tensor: no entry for one that needs none, ``None`` for one cut off."""


def _gradients(value: Tensor, tensors: list[Tensor]) -> Gradients:
    """Gradients without touching ``.grad``."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not value.requires_grad:
        return {id(tensor): None for tensor in wanted}
    found = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
    return {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True)}


def _norm(gradients: Gradients, tensors: list[Tensor]) -> float | None:
    """L2 norm of the gradients of some tensors together; ``None`` when none of them needs one."""
    known = [gradients[id(tensor)] for tensor in tensors if id(tensor) in gradients]
    if not known:
        return None
    return math.sqrt(sum(g.detach().double().square().sum().item() for g in known if g is not None))


def _step_of(neuron: Neuron, own: int, steps: int, step_ms: float | None) -> float:
    """Milliseconds of a step of a neuron that took ``own`` of them while the input took ``steps`` of ``step_ms``."""
    if step_ms is None:
        return neuron.dt
    # behind a stride steps are longer, those of substeps shorter
    return step_ms * round(steps / max(1, own)) if own <= steps else step_ms / round(own / steps)


def _rows(
    model: nn.Module,
    records: Records,
    gradients: Gradients,
    given: Passed,
    lengths: Tensor | None,
    clock: tuple[int, float | None],
) -> list[Row]:
    """A row for every recorded output and every other module that owns parameters, in the model's order."""
    fired = activity(records, lengths)
    rows = []
    inside: set[nn.Module] = set()  # a neuron's constants belong to its own row
    for name, module in model.named_modules():
        if module in inside:
            continue
        recorded = [key for key, ran in records.modules.items() if ran is module]
        own = list(module.parameters(recurse=bool(recorded)))
        if recorded:
            inside.update(module.modules())
        kind = type(module).__name__
        norm = _norm(gradients, own)
        fine = all(bool(p.isfinite().all()) for p in own)
        for key in recorded:
            seen, y = fired.get(key), records[key]
            dt = _step_of(module, len(y), *clock) if isinstance(module, Neuron) else None
            # the record of a layer that ran in chunks is put together from theirs and is no part of the graph
            whole = gradients.get(id(y)) is not None
            rows.append(
                Row(
                    key,
                    kind,
                    rate=seen.rate if seen else None,
                    hz=seen.rate * 1000.0 / dt if seen and dt else None,
                    silent=seen.silent if seen else None,
                    saturated=seen.saturated if seen else None,
                    output_gradient=_norm(gradients, [y] if whole else given.get(module, [y])),
                    parameter_gradient=norm,
                    finite=fine and bool(y.isfinite().all()),
                )
            )
        if own and not recorded:
            rows.append(Row(name or kind, kind, parameter_gradient=norm, finite=fine))
    return rows


def _about_input(x: Tensor) -> list[str]:
    bad = int((~x.isfinite()).sum())
    if bad:
        return [
            f"input: {bad} of {x.numel()} values are NaN or Inf: clean the data. Nothing else was looked at."
        ]
    largest = x.abs().max().item()
    if largest == 0:
        return ["input: every value of this batch is 0: is the data loaded and scaled right?"]
    if largest > LARGE_INPUT:
        return [
            f"input: values up to {largest:.4g} in magnitude: scale the data, to [0, 1] or to a standard "
            "deviation of 1."
        ]
    return []


def _not_finite_parameters(model: nn.Module) -> list[str]:
    messages, roles = [], parameter_roles(model)
    for name, p in model.named_parameters():
        bad = int((~p.isfinite()).sum())
        if bad:
            role = roles[p]
            messages.append(
                f"parameter {name} ({role}): {bad} of {p.numel()} values are NaN or Inf: go back to an "
                f"earlier checkpoint, and train the {role} with a lower learning rate or clipped gradients."
            )
    return messages


def _stopped(model: nn.Module, records: Records, error: str) -> str:
    """The forward did not come to its end: the first neuron without a record refused what it got."""
    ran = set(records.modules.values())
    for name, module in model.named_modules():
        if isinstance(module, Neuron) and module not in ran:
            return f"layer {name or type(module).__name__} stopped the forward: {error}"
    return f"the forward stopped: {error}"


def _not_finite(rows: list[Row], value: Tensor) -> list[str]:
    """Where NaN or Inf began, with finite parameters: on the way forward, in the loss, or on the way back."""
    for row in rows:
        if not row.finite:
            return [
                f"{_layer(row)}: NaN or Inf in its output, the first layer with any: its sums overflow; look "
                "at the size of its weights and of its input."
            ]
    if not bool(value.isfinite()):
        return [
            f"the loss is {value.item()} although every layer is finite: look at the read-out, the loss and "
            "the labels."
        ]
    for row in reversed(rows):
        if not _finite_gradients(row):
            return [
                f"{_layer(row)}: NaN or Inf in its gradient, the first layer with any on the way back: look "
                "at its surrogate, and at the size of the weights after it."
            ]
    return []


def _finite_gradients(row: Row) -> bool:
    return math.isfinite(row.output_gradient or 0.0) and math.isfinite(row.parameter_gradient or 0.0)


COMPARISON = "A step that fires by a comparison such as (v > threshold) lets no gradient through: it needs spiketide.spike."


def _about_walls(rows: list[Row], records: Records, heard: Passed, gradients: Gradients) -> list[str]:
    """Neurons whose output has a gradient and whose input has none."""
    messages = []
    for place, row in enumerate(rows):
        module = records.modules.get(row.name)
        if module is None or not row.output_gradient or _norm(gradients, heard.get(module, [])) != 0.0:
            continue
        assert isinstance(module, Neuron)
        # the feedback of a recurrence stands behind its neuron
        feedback = row.name.removesuffix("neuron") + "synapse"
        before = [
            _layer(other)
            for number, other in enumerate(rows)
            if other.parameter_gradient == 0.0
            and not other.output_gradient
            and (number < place or other.name == feedback or other.name.startswith(feedback + "."))
        ]
        begin = (
            f"no gradient reaches {', '.join(before)}: {_layer(row)} lets none through."
            if before
            else f"no gradient gets through {_layer(row)}."
        )
        surrogate = (
            "None of its membranes is within reach of the surrogate on this batch: a wider surrogate, or another gain in "
            "front of it, helps."
        )
        program = entry(module._key).program
        if program is None:
            messages.append(f"{begin} {COMPARISON} If it has that: {surrogate[0].lower()}{surrogate[1:]}")
        else:
            fires = any(node.op == "spike" for node in program.graph.nodes)
            messages.append(f"{begin} {surrogate if fires else COMPARISON}")
    return messages


def _about_training(model: nn.Module, gradients: Gradients, comparison: str = f" {COMPARISON}") -> list[str]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        return ["the model has no parameter to train: every one has requires_grad=False, or there is none."]
    cut = [name for name, p in trained if gradients[id(p)] is None]
    if cut:
        return [
            f"no gradient reaches {', '.join(cut)}: is it used in the forward? A detach, or a loss that does "
            f"not depend on the output, cuts it off.{comparison}"
        ]
    return []


def _about_firing(rows: list[Row]) -> list[str]:
    messages = []
    for row in rows:
        if row.silent is not None and row.silent > SILENT_SHARE:
            messages.append(
                f"{_layer(row)}: {_percent(row.silent)} of the neurons never fire on this batch: raise the "
                "gain of its synapse, lower its threshold, or add losses.Silence."
            )
        if row.saturated is not None and row.saturated > SATURATED_SHARE:
            messages.append(
                f"{_layer(row)}: {_percent(row.saturated)} of the neurons fire in more than "
                f"{_percent(SATURATED_RATE)} of the steps: lower the gain of its synapse, raise its "
                "threshold, or add losses.SpikeRate."
            )
    return messages


def _about_gradients(rows: list[Row], cut: bool) -> list[str]:
    messages = []
    seen = [(row, row.output_gradient) for row in rows if row.output_gradient is not None]
    if seen:
        last, reference = seen[-1]
        low, least = min(seen, key=lambda pair: pair[1])
        high, most = max(seen, key=lambda pair: pair[1])
        if cut:  # where it ends has been said
            pass
        elif least == 0.0:
            messages.append(
                f"no gradient reaches the output of {_layer(low)}: is it used, and are the membranes of the "
                "layer after it within reach of the surrogate? A wider surrogate, or a smaller gain, helps."
            )
        elif least < VANISHING * reference:
            messages.append(
                f"gradients vanish: the norm falls from {reference:.1e} at {_layer(last)} to {least:.1e} at "
                f"{_layer(low)}: use a wider surrogate, larger weights, residual connections or fewer layers."
            )
        if 0.0 < EXPLODING * reference < most:
            messages.append(
                f"gradients explode: the norm grows from {reference:.1e} at {_layer(last)} to {most:.1e} at "
                f"{_layer(high)}: use smaller (recurrent) weights, a narrower or lower surrogate, or clip "
                "gradients."
            )
    for row in rows:
        if row.parameter_gradient is not None and row.parameter_gradient > EXPLODING:
            messages.append(
                f"{_layer(row)}: the gradient of its parameters has norm {row.parameter_gradient:.1e}: clip "
                "gradients, scale the input, or use smaller weights."
            )
    return messages


def _layer(row: Row) -> str:
    return f"layer {row.name} ({row.kind})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
