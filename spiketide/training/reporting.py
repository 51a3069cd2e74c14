"""From a tested run to the plain numbers that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from ..compose import Bidirectional
from ..diagnose import Diagnosis, diagnose, diagnose_first_spikes
from ..energy import Operations, count_operations
from ..errors import RunError, SpiketideError
from ..layer import Layer
from ..neurons import ALIF, Neuron
from ..neurons.base import Constant, TimeConstant
from ..probe import is_spiking, valid_steps
from ..report import Constants, ReportData, Row, SampleTrace, Strip, choose_samples, write_report
from ..scan import Delayed
from ..segments import Onsets, match_onsets, near
from ..shapes import time_mask
from ..synapses import LayerDelays, delay_statistics
from ..timing import TimingLayer
from ..types import UNLABELLED, Batch
from . import first_spikes
from .callbacks import Reseed
from .first_spikes import FirstSpikeTest
from .folder import RunFolder
from .judgement import judge
from .labelling import Labelling
from .recipe import Built, Recipe
from .single_spike import SingleSpike
from .task import Output, Task

ADAPTATION = ("a", "w", "q")
"""What the models call the variable by which they adapt: a threshold, a current, a refractory damping."""

SAMPLES, WRONG, MEMBRANES = 6, 2, 4
"""Samples a report shows, how many of them misclassified, and membranes a layer."""


class Collector(L.Callback):
    """What the test data showed: predictions, rates of every neuron, synaptic operations; of single-spike networks, when.

    ``labels`` and ``predictions`` have a number a sample, or, of data labelled step by step, a row ``(T_i,)`` a sample.
    """

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.stepwise = False
        self.operations = Operations()
        self.first_spikes: FirstSpikeTest | None = None
        self._counts: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._over: list[tuple[Tensor, Tensor]] = []
        self._stack = ExitStack()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count operations."""
        model: Any = pl_module
        self.operations = self._stack.enter_context(count_operations(model.network))
        if isinstance(model, SingleSpike):
            net: Any = model.network
            self.first_spikes = FirstSpikeTest(net)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in one batch."""
        output: Output = outputs
        model: Any = pl_module
        samples = output.y.shape[1]
        self.stepwise = batch.y.dim() > 1
        y, said = batch.y.cpu(), output.scores.argmax(-1).cpu()
        if self.stepwise:
            ends = [len(y)] * samples if output.lengths is None else output.lengths.tolist()
            self.labels += [y[:end, column] for column, end in enumerate(ends)]
            self.predictions += [said[:end, column] for column, end in enumerate(ends)]
        else:
            self.labels += list(y)
            self.predictions += list(said)
        self._over.append(self._right_over_time(model.answers(output).cpu(), y, output.lengths))
        self.operations.samples += samples
        if self.first_spikes is not None:
            self.first_spikes.add(output, batch.y, self.operations)
        for name, spikes in output.spikes.items():
            steps = int(valid_steps(spikes, output.lengths_of(spikes)))
            self._steps[name] = self._steps.get(name, 0) + steps
            count = spikes.sum((0, 1), dtype=torch.float64).flatten().cpu()
            self._counts[name] = self._counts.get(name, 0) + count

    def _right_over_time(self, said: Tensor, y: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Right answers and judged answers of every step, ``(T,)`` each; where nothing is said (-1), nothing is right."""
        judged = torch.ones_like(said, dtype=torch.bool)
        if lengths is not None:
            judged = time_mask(lengths.cpu(), len(said))
        if self.stepwise:
            judged = judged & (y != UNLABELLED)
        return ((said == y) & (said >= 0) & judged).sum(1), judged.sum(1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop counting."""
        self._stack.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop counting."""
        self._stack.close()

    @property
    def samples(self) -> int:
        """Test samples seen."""
        return len(self.labels)

    def accuracy(self, unlabelled: int | None = None) -> float:
        """Share of the test samples, or labelled steps, predicted right; ``unlabelled``: the class of steps without a label."""
        y, said = self._all()
        if unlabelled is not None:
            y = torch.where(y == UNLABELLED, unlabelled, y)
        judged = y != UNLABELLED
        return int(((y == said) & judged).sum()) / max(1, int(judged.sum()))

    def _all(self) -> tuple[Tensor, Tensor]:
        join = torch.cat if self.stepwise else torch.stack
        return join(self.labels), join(self.predictions)

    @property
    def over_time(self) -> np.ndarray:
        """Accuracy at every step within a sequence, ``(T,)``: of those sequences that have a judged step there, else NaN."""
        steps = max((len(right) for right, _ in self._over), default=0)
        total = np.zeros((2, steps))
        for pair in self._over:
            for row, count in zip(total, pair, strict=True):
                row[: len(count)] += count.numpy()
        return np.divide(total[0], total[1], out=np.full(steps, np.nan), where=total[1] > 0)

    @property
    def rates(self) -> dict[str, np.ndarray]:
        """Layer -> spikes per step of each neuron; 0 when the test data has no valid step."""
        return {name: (count / max(1, self._steps[name])).numpy() for name, count in self._counts.items()}

    @property
    def rate(self) -> float:
        """Spikes per neuron and valid step, over all neurons; 0 when none of them spikes by nature."""
        places = sum(self._steps[name] * count.numel() for name, count in self._counts.items())
        return sum(float(count.sum()) for count in self._counts.values()) / max(1, places)

    def confusion(self, classes: int) -> np.ndarray:
        """Counts ``(C, C)`` of samples or labelled steps, rows true."""
        y, said = self._all()
        judged = y != UNLABELLED
        pairs = y[judged] * classes + said[judged]
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()

    def onsets(self, classes: int, tolerance: float) -> list[Onsets]:
        """How the onsets of every class were found; for data labelled step by step."""
        truth, said = ([row.numpy() for row in rows] for rows in (self.labels, self.predictions))
        return match_onsets(truth, said, classes, tolerance=tolerance)

    def near(self, steps: int) -> float:
        """Share of the labelled steps whose prediction occurs among the labels at most so many steps away."""
        right = judged = 0
        for y, said in zip(self.labels, self.predictions, strict=True):
            labelled = (y != UNLABELLED).numpy()
            right += int((near(y.numpy(), said.numpy(), steps) & labelled).sum())
            judged += int(labelled.sum())
        return right / max(1, judged)


def measured(model: Task, data: Any, collector: Collector) -> dict[str, Any]:
    """What a test says of the predictions: ``test_accuracy``, and more where every step has a label."""
    if collector.first_spikes is not None:
        return {"test_accuracy": collector.accuracy(), **collector.first_spikes.measured(collector.over_time)}
    if not isinstance(model, Labelling):
        return {"test_accuracy": collector.accuracy()}
    names = data.class_names
    found = collector.onsets(len(names), model.tolerance)
    return {
        "test_accuracy": collector.accuracy(model.unlabelled),
        "test_accuracy_labelled": collector.accuracy(),
        "test_accuracy_near": collector.near(model.near),
        "onset_tolerance": model.tolerance,
        "onsets": {
            name: {**row._asdict(), "missed": row.missed} for name, row in zip(names, found, strict=True)
        },
    }


def make_report(
    folder: RunFolder, recipe: Recipe, built: Built, collector: Collector, result: dict[str, Any]
) -> Path:
    """Write ``report.html`` of a run whose test data was just measured."""
    model, data = built.model, built.data
    chosen = _choose(collector)
    labels = layer_names(model.network)
    metrics = folder.read_json("metrics.json")
    story = folder.read_json("versions.json") or {}
    names = getattr(data, "class_names", None)
    classes = _classes(collector) if names is None else len(names)
    traces: list[SampleTrace] = []
    further: dict[str, Any] = {}
    if collector.first_spikes is not None:
        net: Any = model.network
        classes = max(classes, int(net.output.weight.shape[0]))
        if names is not None:  # outputs that no class of the data has are numbered
            names = [*names, *map(str, range(len(names), classes))]
        found = first_spikes.shown(collector.first_spikes, collector.over_time, built, chosen, labels)
        further = {"first_spikes": found}
    else:
        traces = trace(built, chosen)
        further = {"over_time": {"Accuracy": collector.over_time}}
    if collector.stepwise:
        step_ms = getattr(data, "dt", None)
        further |= {
            "unit": "labelled steps",
            "strips": _strips(collector, chosen, traces, step_ms),
            "onsets": dict(
                zip(
                    names or map(str, range(classes)),
                    collector.onsets(classes, _tolerance(model)),
                    strict=True,
                )
            ),
            "onset_tolerance": _in_words(_tolerance(model), step_ms),
        }
    report = ReportData(
        title=f"{recipe.name}, seed {built.seed}",
        recipe=recipe.yaml,
        summary=_summary(model, metrics, result),
        curves=_curves(metrics["history"]),
        confusion=collector.confusion(classes),
        class_names=names,
        samples=traces,
        constants=_constants(recipe, built),
        firing={labels[name]: rates for name, rates in collector.rates.items()},
        delays=_delays(recipe, built),
        claim=None if built.claim is None else _claim(built, result, recipe.overridden),
        environment=_environment(story),
        diagnosis=_diagnose(built).messages,
        best_epoch=int(metrics["best"]["epoch"]),
        **further,
    )
    path = folder.path / "report.html"
    write_report(report, path)
    return path


def _classes(collector: Collector) -> int:
    return 1 + max(int(row.max()) for row in (*collector.labels, *collector.predictions))


def _tolerance(model: Task) -> float:
    return model.tolerance if isinstance(model, Labelling) else 0.0


def _in_words(steps: float, step_ms: float | None) -> str:
    return f"{steps:g} steps" + ("" if step_ms is None else f" ({steps * step_ms:g} ms)")


def _choose(collector: Collector) -> list[int]:
    """Samples to show: right and wrong ones, or sequences from the best to the worst labelled."""
    count = min(SAMPLES, collector.samples)
    if not collector.stepwise:
        truth, given = (torch.stack(rows).numpy() for rows in (collector.labels, collector.predictions))
        return choose_samples(truth, given, count, wrong=min(WRONG, count))
    shares = []
    for y, said in zip(collector.labels, collector.predictions, strict=True):
        judged = y != UNLABELLED
        shares.append(float((y == said)[judged].float().mean()) if bool(judged.any()) else -1.0)
    order = np.argsort(shares, kind="stable")[::-1]
    places = np.linspace(0, len(order) - 1, count).round().astype(int)
    return [int(order[place]) for place in dict.fromkeys(places.tolist())]


def _strips(
    collector: Collector, chosen: list[int], traces: list[SampleTrace], step_ms: float | None
) -> list[Strip]:
    """True and predicted labels of the chosen sequences, beneath their input."""
    return [
        Strip(
            labels=collector.labels[number].numpy(),
            predictions=collector.predictions[number].numpy(),
            input=None if sample.input is None else sample.input[: len(collector.labels[number])],
            title=f"Test sequence {number}",
            step_ms=step_ms,
        )
        for number, sample in zip(chosen, traces, strict=True)
    ]


def _constants(recipe: Recipe, built: Built) -> dict[str, Constants]:
    """The trained constants of every neuron, and those it began with; time constants in steps."""
    network = built.model.network
    now = _trained_constants(network)
    if not now:
        return {}
    with isolate_rng():  # as with the delays: what is drawn here must not change what is drawn after it
        begun = _trained_constants(recipe.build().model.network)
    return {
        name: Constants(begun=begun[name][0], trained=values, unit=unit)
        for name, (values, unit) in now.items()
    }


def _trained_constants(network: nn.Module) -> dict[str, tuple[np.ndarray, str]]:
    labels = layer_names(network)
    found: dict[str, tuple[np.ndarray, str]] = {}
    for name, neuron in network.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        for constant in neuron.children():
            if isinstance(constant, Constant) and any(p.requires_grad for p in constant.parameters()):
                values = constant().detach().flatten().cpu().numpy()
                in_steps = isinstance(constant, TimeConstant)
                found[f"{labels[name]} {constant.name}"] = (
                    (values / neuron.dt, "steps") if in_steps else (values, "")
                )
    return found


def rewrite_report(folder: RunFolder) -> Path:
    """Measure a tested run again and write its report anew; ``test.json`` stays as it is.

    Raises:
        RunError: the run was not tested yet.
    """
    from .run import evaluate

    with folder.hold():
        stored = folder.read_json("test.json")
        if stored is None:
            raise RunError(
                f"{folder.path} was not tested yet; `spiketide test {folder.path}` measures and writes the report."
            )
        recipe, built, collector, _ = evaluate(folder)
        return make_report(folder, recipe, built, collector, stored)


def diagnose_recipe(recipe: Recipe, folder: RunFolder | None = None) -> Diagnosis:
    """What :func:`spiketide.diagnose` says about a recipe as it begins, or about the best checkpoint of a run."""
    built = recipe.build()
    if folder is not None:
        if not folder.best.is_file():
            raise RunError(f"{folder.path} has no best checkpoint yet; diagnose its recipe instead.")
        folder.fill(built.model)
    return _diagnose(built)


def _diagnose(built: Built) -> Diagnosis:
    model, data = built.model, built.data
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    if isinstance(model, SingleSpike):
        return _diagnose_first_spikes(model, batch, data.train_dataloader())
    return diagnose(model, batch, step_ms=getattr(data, "dt", None))


def _diagnose_first_spikes(model: SingleSpike, batch: Batch, batches: Any) -> Diagnosis:
    """As training would begin: with the scales set, if the recipe says so."""
    told = ""
    try:
        model.prepare(batches)
    except SpiketideError as error:
        told = str(error)
    net: Any = model.network
    found = diagnose_first_spikes(net, batch, encoder=model.encoder, loss=model.loss)
    if not told or any(told in message for message in found.messages):
        return found
    return replace(found, messages=[told, *found.messages])


def layer_names(network: nn.Module) -> dict[str, str]:
    """Names for people: ``"2.neuron"`` -> ``"2 ALIF"``."""
    return {
        name: f"{name.removesuffix('.neuron')} {type(module).__name__}".strip()
        for name, module in network.named_modules()
        if isinstance(module, (Neuron, TimingLayer))
    }


def trace(built: Built, chosen: list[int]) -> list[SampleTrace]:
    """Spikes, membranes and scores over time of a few test samples, by their number in the order of the test data."""
    model, data = built.model.cpu().eval(), built.data
    data.prepare_data()
    data.setup("test")
    found: dict[int, SampleTrace] = {}
    first = 0
    with torch.no_grad():
        for index, batch in enumerate(data.test_dataloader()):
            samples = batch.y.shape[-1]  # (B,), or (T, B)
            here = [number - first for number in chosen if first <= number < first + samples]
            if here:
                Reseed.test_batch(built.seed, index)  # the same noise as in the measurement
                for column, sample in zip(here, _traces(model, batch, here), strict=True):
                    found[first + column] = sample
            first += samples
            if len(found) == len(chosen):
                break
    return [found[number] for number in chosen]


def _traces(model: Task, batch: Batch, columns: list[int]) -> list[SampleTrace]:
    x = batch.x if model.encoder is None else model.encoder(batch.x)
    output = model(batch._replace(x=x), encoded=True)
    scores = model.evolve(output)
    membranes = record_membranes(model.network, x[:, columns])
    labels = layer_names(model.network)

    def longer(steps: Tensor) -> Any:
        # layers with a tail go on after those in front of them, which are silent then
        missing = output.y.shape[0] - steps.shape[0]
        if missing < 0:  # substeps: a spike in any of them is one of the step
            return steps.unflatten(0, (output.y.shape[0], -1)).amax(1).numpy()
        return torch.cat([steps, steps.new_zeros(missing, *steps.shape[1:])]).numpy()

    def course(values: Tensor, position: int, busy: Tensor) -> Any:
        # of a membrane: of substeps the last, behind its own steps what it was
        values, steps = values[:, position].flatten(1)[:, busy], output.y.shape[0]
        if values.shape[0] > steps:
            return values.unflatten(0, (steps, -1))[:, -1].numpy()
        return torch.cat([values, values[-1:].expand(steps - values.shape[0], -1)]).numpy()

    samples = []
    for position, column in enumerate(columns):
        length = output.y.shape[0] if output.lengths is None else int(output.lengths[column])
        hidden = {labels[name]: longer(spikes[:, column]) for name, spikes in output.spikes.items()}
        membrane, threshold, adaptation, neurons = {}, {}, {}, {}
        for name, spikes in output.spikes.items():
            if name not in membranes:
                continue
            # The neurons that fire most in this sample have the most to show.
            busy = spikes[:length, column].flatten(1).sum(0).argsort(descending=True, stable=True)[:MEMBRANES]
            v, limit, adapted = membranes[name]
            neurons[labels[name]] = busy.tolist()
            membrane[labels[name]] = course(v, position, busy)
            if limit is not None:
                threshold[labels[name]] = course(limit, position, busy)
            if adapted is not None:
                adaptation[labels[name]] = course(adapted, position, busy)
        samples.append(
            SampleTrace(
                label=None if batch.y.dim() > 1 else int(batch.y[column]),
                prediction=None if batch.y.dim() > 1 else int(output.scores[column].argmax()),
                input=longer(x[:, column]),
                hidden=hidden,
                membrane=membrane,
                scores=scores[:, column].numpy(),
                lengths=length,
                threshold=threshold,
                adaptation=adaptation,
                neurons=neurons,
            )
        )
    return samples


def record_membranes(network: Layer, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None, Tensor | None]]:
    """Membrane, threshold and adaptation of every spiking neuron after every step of it.

    What each neuron is given in one forward is given to it again, a step at a time. In evaluation mode. Empty for a network with
    two directions of time.

    Shapes:
        ``x (T, B, *N_in)`` -> name: ``(T', B, *N)`` three times, ``T'`` the steps of that neuron; threshold and adaptation are
        ``None`` where a model has none.
    """
    if any(isinstance(module, Bidirectional) for module in network.modules()):
        return {}
    kept: dict[str, list[tuple[Tensor, Tensor | None, Tensor | None]]] = {}
    again = False

    def keep(name: str, neuron: Any) -> Any:
        def look(end: Any) -> None:
            state = dict(zip(neuron.states, end, strict=False))  # a recurrence ends in its last spikes
            limit = neuron.threshold() if hasattr(neuron, "threshold") else None
            if isinstance(neuron, ALIF):
                limit = neuron.threshold() + neuron.adaptation() * state["a"]
            v = state["v"]
            adapted = next((state[word] for word in ADAPTATION if word in state), None)
            kept.setdefault(name, []).append((v, None if limit is None else limit.expand_as(v), adapted))

        def hook(module: nn.Module, args: Any, options: Any, output: Any) -> None:
            nonlocal again
            if again:
                return
            if args[0].shape[0] == 1:
                look(output[1])
                return
            again = True
            try:
                state = args[1] if len(args) > 1 else options.get("state")
                options = {word: value for word, value in options.items() if word in ("feedback", "coefs")}
                late = options.get("feedback")
                for step in args[0].split(1):
                    y, state = module(step, state, **options)
                    look(state)
                    if isinstance(late, Delayed):  # what is under way is no part of a neuron's state
                        options["feedback"] = late = late.after(y)
            finally:
                again = False

        return hook

    handles = [
        module.register_forward_hook(keep(name, module), with_kwargs=True)
        for name, module in network.named_modules()
        if isinstance(module, Neuron) and is_spiking(module) and "v" in module.states
    ]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(map(_stacked, zip(*steps, strict=True))) for name, steps in kept.items()}  # type: ignore[misc]


def _stacked(steps: tuple[Tensor | None, ...]) -> Tensor | None:
    there = [step for step in steps if step is not None]
    return torch.stack(there) if there else None


def _summary(model: nn.Module, metrics: dict[str, Any], result: dict[str, Any]) -> list[Row]:
    sparse, dense = result["synaptic_operations"], result["dense_operations"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = (
        f"{sparse / dense:.1%} of {dense:,.0f} if every connection were used at every step" if dense else ""
    )
    single = isinstance(model, SingleSpike)
    if single and dense:
        share = f"{sparse / dense:.1%} of the {dense:,.0f} connections, each used once at most"
    per = "sample" if single else "step"
    return [
        *_accuracies(model, result),
        Row("Validation accuracy", metrics["best"].get("val/accuracy"), "of the epoch that was tested"),
        Row("Test loss", result["test_loss"]),
        Row("Firing rate", result["firing_rate"], f"spikes per neuron and {per}, all spiking layers"),
        Row("Synaptic operations", round(sparse), f"a sample: {share}"),
        Row("Trained parameters", trained),
        Row("Epochs", metrics["epochs"], f"the best was {metrics['best']['epoch']:.0f}, counted from 0"),
        Row("Training time", f"{metrics['seconds']:.1f} s"),
        *_looking_ahead(model),
    ]


def _looking_ahead(model: nn.Module) -> list[Row]:
    """How much of the future a step's scores know: without this, what leads when would be read as when it is decided."""
    modules = list(model.modules())
    note = "what leads at a step knows later input too, so it is no time of decision"
    if any(isinstance(module, Bidirectional) for module in modules):
        return [Row("Looks ahead", "to the end", note)]
    steps = sum(ahead for module in modules if isinstance(ahead := getattr(module, "ahead", None), int))
    return [Row("Looks ahead", f"{steps} steps", note)] if steps else []


def _accuracies(model: nn.Module, result: dict[str, Any]) -> list[Row]:
    once = f"on {result['samples']:,} samples, measured once"
    if isinstance(model, SingleSpike):
        return [Row("Test accuracy", result["test_accuracy"], once), *first_spikes.summary(result)]
    if not isinstance(model, Labelling):
        return [Row("Test accuracy", result["test_accuracy"], once)]
    as_published = (
        "" if model.unlabelled is None else f"; a step without a label counts as class {model.unlabelled}"
    )
    return [
        Row("Test accuracy", result["test_accuracy"], f"of all steps, {once}{as_published}"),
        Row("Test accuracy, labelled", result["test_accuracy_labelled"], "of the steps that have a label"),
        Row(
            "Test accuracy, near",
            result["test_accuracy_near"],
            f"a label up to {model.near} steps away counts",
        ),
    ]


def _curves(history: list[dict[str, float]]) -> dict[str, list[tuple[int, float | None, float | None]]]:
    wanted = {
        "loss": "Loss",
        "accuracy": "Accuracy",
        "accuracy_labelled": "Accuracy, labelled",
        "rate": "Firing rate",
    }
    if any("val/no_fire" in row for row in history):
        del wanted["rate"]  # of first spikes, that times the number of neurons is shown
        wanted |= {
            "time": "Decision time",
            "spikes": "Spikes a sample",
            "no_fire": "Share without a decision",
        }
    return {
        word: [(int(row["epoch"]), row.get(f"train/{name}"), row.get(f"val/{name}")) for row in history]
        for name, word in wanted.items()
        if name != "accuracy_labelled" or any(f"val/{name}" in row for row in history)
    }


def _delays(recipe: Recipe, built: Built) -> dict[str, LayerDelays]:
    """The delays of the tested network and those it began with; empty without delay layers."""
    network = built.model.network
    if not delay_statistics(network):
        return {}
    # The run folder keeps the last and the best checkpoint, no initial one. The recipe is stored with its seed and every
    # argument, and training begins by building it just so: the same installation draws the same initial delays, to the bit.
    with isolate_rng():  # what is drawn here must not change what is drawn after it
        begun = recipe.build().model.network.state_dict()
    found = delay_statistics(network, begun)
    return {f"{name} {layer.kind}".strip(): layer for name, layer in found.items()}


def _claim(built: Built, result: dict[str, Any], overridden: Sequence[str]) -> dict[str, Any]:
    claim = built.claim
    if claim is None or claim.metric not in result:
        return {}
    verdict, words = judge(result[claim.metric], None, claim, overridden)
    return {
        **vars(claim),
        "verdict": verdict in ("reproduced", "above"),
        "in words": f"this seed alone: {words.rstrip('.')}",
    }


def _environment(story: dict[str, Any]) -> dict[str, Any]:
    apart = ("seed", "machine", "commit", "command", "overridden", "begun", "resumed", "recipe")
    known = {key: story[key] for key in apart if story.get(key) not in (None, []) and key != "recipe"}
    return {"versions": {key: value for key, value in story.items() if key not in apart}, **known}
