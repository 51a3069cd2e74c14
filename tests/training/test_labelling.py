"""Labels of single steps: what is counted, what is logged, what is refused; and truncated back-propagation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers import quiet_trainer
from torch.nn import functional

from spiketide.compose import Bidirectional, Recurrent
from spiketide.data import ArrayData
from spiketide.errors import DataError, NonFiniteError, ParameterError, ShapeError, SpiketideError
from spiketide.neurons import ALIF, LIF, LeakyIntegrator
from spiketide.readouts import SpikeCount, SumSoftmax
from spiketide.synapses import Dense, SynapticDelay
from spiketide.training import Classification, Labelling
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import surroundings, train
from spiketide.training.run import test as run_test
from spiketide.types import Batch


def layers(classes: int = 3) -> list[Any]:
    torch.manual_seed(0)
    hidden = Recurrent(ALIF(6, threshold=0.05), Dense(6, 6, bias=False))
    return [Dense(4, 6), hidden, Dense(6, classes), LeakyIntegrator(classes, tau_mem=5.0)]


def make(**arguments: Any) -> Labelling:
    return Labelling(layers(), **arguments)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    y = torch.randint(-1, 3, (12, 5))
    lengths = torch.tensor([12, 3, 7, 12, 1])
    return Batch(torch.rand(12, 5, 4), y, lengths)


def by_hand(model: Labelling, batch: Batch, unlabelled: int | None) -> torch.Tensor:
    """Sample by sample, step by step."""
    losses = []
    for b in range(batch.x.shape[1]):
        n = 12 if batch.lengths is None else int(batch.lengths[b])
        y, _ = model.network(batch.x[:n, [b]])
        for t in range(model.skip, n):
            label = int(batch.y[t, b])
            label = label if label >= 0 else (-1 if unlabelled is None else unlabelled)
            if label >= 0:
                losses.append(functional.cross_entropy(y[t], torch.tensor([label])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("unlabelled", [None, 0])
@pytest.mark.parametrize("skip", [0, 4])
def test_the_loss_is_that_of_the_counted_steps(batch: Batch, unlabelled: int | None, skip: int) -> None:
    model = make(unlabelled=unlabelled, skip=skip)
    assert int((batch.y == -1).sum()) > 5
    torch.testing.assert_close(model.objective(model(batch), batch.y), by_hand(model, batch, unlabelled))


def test_accuracy_as_published_and_of_labelled_steps(batch: Batch) -> None:
    model = make(unlabelled=0)
    output = model(batch)
    said, y = output.scores.argmax(-1), batch.y
    valid = [(t, b) for b in range(5) for t in range(int(batch.lengths[b]))]  # type: ignore[index]
    published = np.mean([int(said[t, b]) == max(int(y[t, b]), 0) for t, b in valid])
    labelled = np.mean([int(said[t, b]) == int(y[t, b]) for t, b in valid if y[t, b] >= 0])
    found = model.measures(output, y)
    assert found["accuracy"][0].item() == pytest.approx(published)
    assert found["accuracy_labelled"][0].item() == pytest.approx(labelled)
    assert found["accuracy"][1] == len(valid)
    assert list(make().measures(output, y)) == ["accuracy"]


def test_a_sequence_without_labels_trains_nothing(batch: Batch) -> None:
    model = make()
    silent = batch._replace(y=torch.full_like(batch.y, -1))
    loss = model.objective(model(silent), silent.y)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    half = batch._replace(y=batch.y.clone())
    half.y[:, 3:] = -1
    alone = Batch(batch.x[:, :3], batch.y[:, :3], batch.lengths[:3])  # type: ignore[index]
    torch.testing.assert_close(model.objective(model(half), half.y), model.objective(model(alone), alone.y))


def test_classes_of_weight_0_count_nowhere(batch: Batch) -> None:
    """A batch that holds no other has the loss 0 and no gradient, not 0 / 0."""
    labels = torch.where(torch.rand(12, 5) < 0.5, 1, -1)
    for smoothing in (0.0, 0.1):
        model = make(class_weights=[1.0, 0.0, 2.0], label_smoothing=smoothing)
        loss = model.objective(model(batch), labels)
        loss.backward()
        assert loss.item() == 0.0
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model = make(class_weights=[1.0, 0.0, 2.0])
    output = model(batch)
    assert model.counted(output, labels) == 0
    scores, target = output.scores, model.targets(output, batch.y)
    weights = torch.tensor([1.0, 0.0, 2.0])
    expected = functional.cross_entropy(scores.flatten(0, 1), target.flatten(), weights, ignore_index=-1)
    torch.testing.assert_close(model.objective(output, batch.y), expected)
    assert model.counted(output, batch.y) == int(((target == 0) | (target == 2)).sum())
    for wrong in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("inf"), 1.0]):
        with pytest.raises(ParameterError, match="class_weights of 0 or more, one of them above 0"):
            make(class_weights=wrong)


def test_what_does_not_fit_is_refused(batch: Batch) -> None:
    model = make()
    with pytest.raises(DataError, match=r"labels from 0 to 2, or -1 for none, got -1 to 3"):
        model.objective(model(batch), batch.y.clamp(max=0) + 3 * (batch.y == 2))
    with pytest.raises(ShapeError, match="one int64 label a step"):
        model.objective(model(batch), batch.y[0])
    with pytest.raises(ParameterError, match="unlabelled below 3"):
        wrong = make(unlabelled=3)
        wrong.objective(wrong(batch), batch.y)
    with pytest.raises(ParameterError, match="3 class_weights, got 2"):
        wrong = make(class_weights=[1.0, 2.0])
        wrong.objective(wrong(batch), batch.y)
    for name, value in (
        ("lr_delays", -1.0),
        ("lr_time_constants", float("nan")),
        ("lr_thresholds", -0.5),
        ("weight_decay", -1e-3),
        ("lr", float("inf")),
        ("betas", (1.0, 0.9)),
        ("betas", (0.9, -0.1)),
        ("skip", -1),
        ("unlabelled", -2),
        ("label_smoothing", 1.0),
        ("tolerance", -1.0),
        ("near", -1),
    ):
        with pytest.raises(ParameterError, match=name):
            make(**{name: value})


def test_nan_names_its_place_and_a_diverged_constant_its_layer(batch: Batch) -> None:
    x = batch.x.clone()
    x[5, 2, 1] = float("nan")
    with pytest.raises(
        NonFiniteError, match="1 NaN or Inf among 240 values, the first in sample 2 at step 5"
    ):
        make()(batch._replace(x=x))
    model = make()
    hidden: Any = model.network[1]
    with torch.no_grad():
        hidden.neuron.tau_adapt.raw.fill_(float("nan"))  # as an old checkpoint may hold
    with pytest.raises(NonFiniteError, match="layer 1: ALIF: the constant decay_adapt is NaN"):
        model(batch)


# ------------------------------------------------------------------------------------------------ overflowing gradients


class Explode(torch.nn.Module):
    """Infinite gradients in chosen steps."""

    def __init__(self, model: Labelling, steps: set[int]) -> None:
        super().__init__()
        self.calls, self.steps = 0, steps
        next(iter(model.network.parameters())).register_hook(self.gradient)

    def gradient(self, grad: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return grad * float("inf") if self.calls - 1 in self.steps else grad


def data_of(n: int = 24) -> ArrayData:
    rng = np.random.default_rng(0)
    x = (rng.random((n, 12, 4)) < 0.3).astype(np.float32)
    y = (x.cumsum(1).argmax(-1) % 3).astype(np.int64)
    y[rng.random(y.shape) < 0.2] = -1
    return ArrayData(x, y, x[:6], y[:6], temporal=True, batch_size=4, validation_fraction=0.2)


def fit(model: Any, data: Any, epochs: int = 1, **options: Any) -> L.Trainer:
    trainer = quiet_trainer(max_epochs=epochs, **options)
    with surroundings():
        trainer.fit(model, datamodule=data)
    return trainer


def test_a_step_with_an_infinite_gradient_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = make(clip="norm")
    Explode(model, {1, 2})
    fit(model, data_of())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert caplog.text.count("is not finite: this step is left out") == 2
    assert "network.0.weight" in caplog.text


def test_ten_in_a_row_are_a_diverged_run() -> None:
    model = make()
    Explode(model, set(range(100)))
    with pytest.raises(NonFiniteError, match=r"network\.0\.weight was NaN or infinite in 10 steps in a row"):
        fit(model, data_of(), epochs=4)


# ---------------------------------------------------------------------------------------------------------- truncation


def windows_by_hand(model: Any, batch: Batch, window: int, lr: float) -> list[float]:
    """Truncated back-propagation with plain SGD, written out."""
    state, past, losses = None, [], []
    for start in range(0, len(batch.x), window):
        y, state = model.network(batch.x[start : start + window], state)
        state = tree(state)
        if isinstance(model, Labelling):
            target = batch.y[start : start + window]
            mask = target >= 0
            mask[: max(0, model.skip - start)] = False
            loss = functional.cross_entropy(y[mask], target[mask])
        else:
            loss = functional.cross_entropy(torch.cat([*past, y]).sum(0), batch.y)
            past.append(y.detach())
        parameters = [p for p in model.parameters() if p.requires_grad]
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= lr * grad
        losses.append(loss.item())
    return losses


def tree(state: Any) -> Any:
    return tuple(map(tree, state)) if isinstance(state, tuple) else state.detach()


class OneBatch(L.LightningDataModule):
    """An epoch of one batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader([self.batch], batch_size=None)

    val_dataloader = train_dataloader


@pytest.mark.parametrize("task", ["labelling", "classification"])
@pytest.mark.parametrize("window", [5, 12, 20])
def test_truncation_steps_once_a_window(task: str, window: int) -> None:
    torch.manual_seed(2)
    x = torch.rand(12, 3, 4)
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "betas": (0.0, 0.9), "truncate": window}
    if task == "labelling":
        batch = Batch(x, torch.randint(-1, 3, (12, 3)))
        models: list[Any] = [Labelling(layers(), skip=2, **options) for _ in range(2)]
    else:
        batch = Batch(x, torch.tensor([0, 2, 1]))
        spiking = [[*layers()[:3], LIF(3, threshold=0.05)] for _ in range(2)]
        models = [Classification(network, SpikeCount(), **options) for network in spiking]
    trainer = fit(models[0], OneBatch(batch))
    losses = windows_by_hand(models[1], batch, window, 0.1)
    assert len(losses) == -(-12 // window) == trainer.global_step
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_truncation_heeds_lengths(batch: Batch) -> None:
    """A sample that has ended takes no part: its padding, even NaN, changes nothing."""
    runs = []
    for fill in (0.0, 7.0):
        x = batch.x.clone()
        for b, n in enumerate(batch.lengths.tolist()):  # type: ignore[union-attr]
            x[n:, b] = fill
        model = make(truncate=5, optimizer="sgd", lr=0.1)
        fit(model, OneBatch(batch._replace(x=x)))
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(runs[0], make().parameters(), strict=True))


def test_a_window_in_which_no_step_counts_trains_nothing() -> None:
    """Weight decay and momentum would move the weights, and a loss of 0 would lower the mean."""
    torch.manual_seed(2)
    y = torch.randint(0, 3, (20, 3))
    y[:4] = -1
    y[8:12] = 1  # a class without a weight
    y[16:] = -1
    batch = Batch(torch.rand(20, 3, 4), y)
    weights = [1.0, 0.0, 1.0]
    options: dict[str, Any] = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.5, "class_weights": weights}
    models = [make(truncate=4, schedule="cosine", **options), make(**options)]
    trainer = fit(models[0], OneBatch(batch))
    assert trainer.global_step == 2
    reference, state, losses = models[1], None, []
    optimizer: Any = reference.configure_optimizers()
    for start in range(0, 20, 4):
        scores, state = reference.network(batch.x[start : start + 4], state)
        state = tree(state)
        if start not in (4, 12):
            continue
        loss = functional.cross_entropy(
            scores.flatten(0, 1), y[start : start + 4].flatten(), torch.tensor(weights), ignore_index=-1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for p, q in zip(models[0].parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_batch_in_which_no_step_counts_is_in_no_mean() -> None:
    x = torch.rand(8, 3, 4)
    model = make(truncate=4, schedule="cosine", lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = fit(model, OneBatch(Batch(x, torch.full((8, 3), -1))))
    assert trainer.global_step == 0 and "train/loss" not in trainer.callback_metrics
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_windows_behind_the_end_of_all_sequences_train_nothing() -> None:
    """A batch may be longer than its sequences."""
    found = []
    for steps in (8, 20):
        network = [*layers()[:3], LIF(3, threshold=0.05)]
        model = Classification(network, SpikeCount(), truncate=4, optimizer="adamw", weight_decay=0.5, lr=0.1)
        torch.manual_seed(3)
        x = torch.cat([torch.rand(8, 3, 4), torch.zeros(12, 3, 4)])[:steps]
        trainer = fit(model, OneBatch(Batch(x, torch.tensor([0, 2, 1]), torch.tensor([8, 5, 8]))))
        found.append((trainer.global_step, trainer.callback_metrics["train/loss"].item(), model))
    assert found[0][:2] == found[1][:2] and found[0][0] == 2
    for p, q in zip(found[0][2].parameters(), found[1][2].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("truncate", [None, 4])
def test_a_trainer_that_clips_is_refused_with_what_to_use(truncate: int | None) -> None:
    data = data_of()
    with pytest.raises(
        ParameterError,
        match=r'instead of Trainer\(gradient_clip_val=0\.5\) use Labelling\(\.\.\., clip="value", clip_at=0\.5\)',
    ):
        fit(make(truncate=truncate), data, gradient_clip_val=0.5, gradient_clip_algorithm="value")
    with pytest.raises(ParameterError, match=r'clip="norm", clip_at=2'):
        fit(make(truncate=truncate, clip="norm"), data, gradient_clip_val=2)
    with pytest.raises(
        ParameterError, match=r"instead of Trainer\(gradient_clip_val=0\) use Labelling\(.*clip=None"
    ):
        fit(make(truncate=truncate, clip="norm"), data, gradient_clip_val=0)
    fit(make(truncate=truncate, clip="value", clip_at=0.5), data)  # as advised
    fit(make(truncate=truncate), data, gradient_clip_val=0)


def test_truncation_cannot_gather_gradients() -> None:
    with pytest.raises(ParameterError, match=r"over 2 batches: leave accumulate_grad_batches at 1"):
        fit(make(truncate=4), data_of(), accumulate_grad_batches=2)


def test_truncation_needs_a_network_that_streams() -> None:
    both = Bidirectional(Recurrent(ALIF(6), Dense(6, 6)))
    with pytest.raises(ParameterError, match="Bidirectional does not"):
        Labelling([Dense(4, 6), both, Dense(12, 3)], truncate=4)
    with pytest.raises(ParameterError, match="SynapticDelay does not"):
        Classification([SynapticDelay(4, 3, max_delay=4, tail=2), LIF(3)], SumSoftmax(), truncate=4)
    with pytest.raises(ParameterError, match="truncate of 1 or more"):
        make(truncate=0)


# ---------------------------------------------------------------------------------------------------------- a whole run


def recipe(tmp_path: Path, **changes: Any) -> Recipe:
    from waves_task import Waves  # noqa: F401 - on the path of the tests

    content: dict[str, Any] = {
        "seed": 0,
        "threads": 1,
        "data": {"class_path": "waves_task.Waves", "init_args": {"batch_size": 8}},
        "model": {
            "class_path": "spiketide.training.Labelling",
            "init_args": {
                "network": [
                    {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 2, "n_out": 12}},
                    {
                        "class_path": "spiketide.compose.Recurrent",
                        "init_args": {
                            "neuron": {
                                "class_path": "spiketide.neurons.ALIF",
                                "init_args": {"n": 12, "threshold": 0.1},
                            },
                            "synapse": {
                                "class_path": "spiketide.synapses.Dense",
                                "init_args": {"n_in": 12, "n_out": 12},
                            },
                        },
                    },
                    {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 12, "n_out": 2}},
                    {
                        "class_path": "spiketide.neurons.LeakyIntegrator",
                        "init_args": {"n": 2, "tau_mem": 3.0},
                    },
                ],
                "unlabelled": 0,
                "tolerance": 2.0,
                "lr": 0.04,
                **changes,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 12, "enable_progress_bar": False},
    }
    return Recipe(content, name="waves")


@pytest.mark.parametrize("truncate", [None, 15])
def test_a_run_trains_is_tested_and_reported(tmp_path: Path, truncate: int | None) -> None:
    folder = RunFolder(tmp_path / "run")
    train(recipe(tmp_path, truncate=truncate), folder)
    result = run_test(folder)
    assert result["test_accuracy"] > 0.75  # constant answers reach 0.5
    assert set(result["onsets"]) == {"low", "high"}
    high = result["onsets"]["high"]
    assert high["true"] == high["found"] + high["missed"] > 0
    assert 0.0 <= result["test_accuracy"] <= result["test_accuracy_near"] <= 1.0
    history = json.loads((folder.path / "metrics.json").read_text())["history"]
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert {"val/accuracy", "val/accuracy_labelled"} <= set(history[-1])
    page = (folder.path / "report.html").read_text()
    assert "Labels over time" in page and "Trained constants" in page and "tau_adapt" in page


def test_a_recipe_that_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    settings = recipe(tmp_path).settings
    settings["model"]["init_args"]["network"][1]["init_args"]["neuron"]["init_args"]["n"] = 11
    with pytest.raises(SpiketideError, match=r"Recurrent expected Dense\(11, 11\)"):
        train(Recipe(settings, name="broken"), RunFolder(tmp_path / "broken"))
    assert not (tmp_path / "broken").exists()
