"""From a tested run to the plain numbers that a report shows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from ..compose import Bidirectional
from ..diagnose import Diagnosis, diagnose
from ..errors import RunError
from ..layer import Layer
from ..neurons import ALIF, Neuron
from ..probe import is_spiking, valid_steps
from ..report import ReportData, Row, SampleTrace, choose_samples, write_report
from ..synapses import LayerDelays, delay_statistics
from ..types import Batch
from .callbacks import Reseed
from .classification import Classification
from .folder import RunFolder
from .judgement import judge
from .operations import Operations, count_operations
from .recipe import Built, Recipe
from .task import Output

SAMPLES, WRONG, MEMBRANES = 6, 2, 4
"""Samples a report shows, how many of them misclassified, and membranes a layer."""


class Collector(L.Callback):
    """What the test data showed: predictions, rates of every neuron, synaptic operations."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.operations = Operations()
        self._counts: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._stack = ExitStack()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count operations."""
        model: Any = pl_module
        self.operations = self._stack.enter_context(count_operations(model.network))

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
        self.labels.append(batch.y.cpu())
        self.predictions.append(output.scores.argmax(-1).cpu())
        self.operations.samples += batch.y.shape[0]
        for name, spikes in output.spikes.items():
            steps = int(valid_steps(spikes, output.lengths_of(spikes)))
            self._steps[name] = self._steps.get(name, 0) + steps
            count = spikes.sum((0, 1), dtype=torch.float64).flatten().cpu()
            self._counts[name] = self._counts.get(name, 0) + count

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
        return sum(len(labels) for labels in self.labels)

    @property
    def accuracy(self) -> float:
        """Share of test samples predicted right."""
        right = sum(int((a == b).sum()) for a, b in zip(self.labels, self.predictions, strict=True))
        return right / self.samples

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
        """Counts ``(C, C)``, rows true."""
        pairs = torch.cat(self.labels) * classes + torch.cat(self.predictions)
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()


def make_report(
    folder: RunFolder, recipe: Recipe, built: Built, collector: Collector, result: dict[str, Any]
) -> Path:
    """Write ``report.html`` of a run whose test data was just measured."""
    model, data = built.model, built.data
    truth, given = torch.cat(collector.labels).numpy(), torch.cat(collector.predictions).numpy()
    chosen = choose_samples(truth, given, min(SAMPLES, len(truth)), wrong=min(WRONG, len(truth)))
    labels = layer_names(model.network)
    metrics = folder.read_json("metrics.json")
    story = folder.read_json("versions.json") or {}
    classes = getattr(data, "num_classes", int(max(truth.max(), given.max())) + 1)
    names = getattr(data, "class_names", None)
    report = ReportData(
        title=f"{recipe.name}, seed {built.seed}",
        recipe=recipe.yaml,
        summary=_summary(model, metrics, result),
        curves=_curves(metrics["history"]),
        confusion=collector.confusion(classes),
        class_names=names,
        samples=trace(built, chosen),
        firing={labels[name]: rates for name, rates in collector.rates.items()},
        delays=_delays(recipe, built),
        claim=None if built.claim is None else _claim(built, result),
        environment=_environment(story),
        diagnosis=_diagnose(built).messages,
        best_epoch=int(metrics["best"]["epoch"]),
    )
    path = folder.path / "report.html"
    write_report(report, path)
    return path


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
        checkpoint = torch.load(folder.best, map_location="cpu", weights_only=True)
        built.model.load_state_dict(checkpoint["state_dict"])
    return _diagnose(built)


def _diagnose(built: Built) -> Diagnosis:
    model, data = built.model, built.data
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    return diagnose(model.network, batch, encoder=model.encoder, readout=model.readout, loss=model.loss)


def layer_names(network: nn.Module) -> dict[str, str]:
    """Names for people: ``"2.neuron"`` -> ``"2 ALIF"``."""
    return {
        name: f"{name.removesuffix('.neuron')} {type(module).__name__}".strip()
        for name, module in network.named_modules()
        if isinstance(module, Neuron)
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
            here = [number - first for number in chosen if first <= number < first + len(batch.y)]
            if here:
                Reseed.test_batch(built.seed, index)  # the same noise as in the measurement
                for column, sample in zip(here, _traces(model, batch, here), strict=True):
                    found[first + column] = sample
            first += len(batch.y)
            if len(found) == len(chosen):
                break
    return [found[number] for number in chosen]


def _traces(model: Classification, batch: Batch, columns: list[int]) -> list[SampleTrace]:
    x = batch.x if model.encoder is None else model.encoder(batch.x)
    output = model(batch._replace(x=x), encoded=True)
    scores = model.readout.evolve(output.y, output.lengths)
    membranes = record_membranes(model.network, x[:, columns])
    labels = layer_names(model.network)

    def longer(steps: Tensor) -> Any:
        # layers with a tail go on after those in front of them, which are silent then
        missing = output.y.shape[0] - steps.shape[0]
        return torch.cat([steps, steps.new_zeros(missing, *steps.shape[1:])]).numpy()

    samples = []
    for position, column in enumerate(columns):
        length = output.y.shape[0] if output.lengths is None else int(output.lengths[column])
        hidden = {labels[name]: longer(spikes[:, column]) for name, spikes in output.spikes.items()}
        membrane, threshold, neurons = {}, {}, {}
        for name, spikes in output.spikes.items():
            if name not in membranes:
                continue
            # The neurons that fire most in this sample have the most to show.
            busy = spikes[:length, column].flatten(1).sum(0).argsort(descending=True, stable=True)[:MEMBRANES]
            v, limit = membranes[name]
            neurons[labels[name]] = busy.tolist()
            membrane[labels[name]] = v[:, position].flatten(1)[:, busy].numpy()
            if limit is not None:
                threshold[labels[name]] = limit[:, position].flatten(1)[:, busy].numpy()
        samples.append(
            SampleTrace(
                label=int(batch.y[column]),
                prediction=int(output.scores[column].argmax()),
                input=longer(x[:, column]),
                hidden=hidden,
                membrane=membrane,
                scores=scores[:, column].numpy(),
                lengths=length,
                threshold=threshold,
                neurons=neurons,
            )
        )
    return samples


def record_membranes(network: Layer, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Membrane and threshold of every spiking neuron after every step, by streaming one step at a time.

    In evaluation mode, in which norms and dropout stream too. Empty for a network that looks into the future, or with delays that
    have a tail: these do not stream.

    Shapes:
        ``x (T, B, *N_in)`` -> name: ``(T, B, *N)`` twice; the threshold is ``None`` where a model has none.
    """
    if any(isinstance(module, Bidirectional) or getattr(module, "tail", 0) for module in network.modules()):
        return {}
    kept: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def keep(name: str, neuron: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            state = dict(zip(neuron.states, output[1], strict=False))  # a recurrence ends in its last spikes
            limit = neuron.threshold() if hasattr(neuron, "threshold") else None
            if isinstance(neuron, ALIF):
                limit = neuron.threshold() + neuron.adaptation() * state["a"]
            v = state["v"]
            kept.setdefault(name, []).append((v, None if limit is None else limit.expand_as(v)))

        return hook

    handles = [
        module.register_forward_hook(keep(name, module))
        for name, module in network.named_modules()
        if isinstance(module, Neuron) and is_spiking(module) and "v" in module.states
    ]
    try:
        state = None
        for step in x.split(1):
            _, state = network(step, state)
    finally:
        for handle in handles:
            handle.remove()
    stacked: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, steps in kept.items():
        limits = [limit for _, limit in steps if limit is not None]
        stacked[name] = (torch.stack([v for v, _ in steps]), torch.stack(limits) if limits else None)
    return stacked


def _summary(model: nn.Module, metrics: dict[str, Any], result: dict[str, Any]) -> list[Row]:
    sparse, dense = result["synaptic_operations"], result["dense_operations"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = (
        f"{sparse / dense:.1%} of {dense:,.0f} if every connection were used at every step" if dense else ""
    )
    return [
        Row("Test accuracy", result["test_accuracy"], f"on {result['samples']:,} samples, measured once"),
        Row("Validation accuracy", metrics["best"].get("val/accuracy"), "of the epoch that was tested"),
        Row("Test loss", result["test_loss"]),
        Row("Firing rate", result["firing_rate"], "spikes per neuron and step, all spiking layers"),
        Row("Synaptic operations", round(sparse), f"a sample: {share}"),
        Row("Trained parameters", trained),
        Row("Epochs", metrics["epochs"], f"the best was {metrics['best']['epoch']:.0f}, counted from 0"),
        Row("Training time", f"{metrics['seconds']:.1f} s"),
    ]


def _curves(history: list[dict[str, float]]) -> dict[str, list[tuple[int, float | None, float | None]]]:
    wanted = {"loss": "Loss", "accuracy": "Accuracy", "rate": "Firing rate"}
    return {
        word: [(int(row["epoch"]), row.get(f"train/{name}"), row.get(f"val/{name}")) for row in history]
        for name, word in wanted.items()
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


def _claim(built: Built, result: dict[str, Any]) -> dict[str, Any]:
    claim = built.claim
    if claim is None or claim.metric not in result:
        return {}
    verdict, words = judge(result[claim.metric], None, claim)
    return {
        **vars(claim),
        "verdict": verdict in ("reproduced", "above"),
        "in words": f"this seed alone: {words}",
    }


def _environment(story: dict[str, Any]) -> dict[str, Any]:
    apart = ("seed", "machine", "commit", "command", "begun", "resumed", "recipe")
    known = {key: story[key] for key in apart if key in story and key != "recipe"}
    return {"versions": {key: value for key, value in story.items() if key not in apart}, **known}
