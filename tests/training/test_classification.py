"""The module that is trained: its loss, its metrics, its optimiser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import quiet_trainer
from torch import Tensor, nn
from torch.nn import functional

from spiketide.data import ArrayData
from spiketide.encoders import Direct
from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.losses import SpikeRate
from spiketide.neurons import LIF, LeakyIntegrator
from spiketide.probe import mean_rates
from spiketide.readouts import LastMembrane, SpikeCount
from spiketide.synapses import Dense
from spiketide.training import Classification
from spiketide.types import Batch


def make(**arguments: Any) -> Classification:
    torch.manual_seed(0)
    network = [Dense(4, 6), LIF(6, tau_mem=5.0, threshold=0.2), Dense(6, 3), LeakyIntegrator(3, tau_mem=5.0)]
    return Classification(network, LastMembrane(), **arguments)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.rand(7, 5, 4), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([7, 3, 5, 7, 1]))


def test_loss_is_cross_entropy_plus_the_penalties(batch: Batch) -> None:
    model = make(regularisers=[SpikeRate(target=0.0, weight=3.0)])
    output = model(batch)
    y, _ = model.network(batch.x, lengths=batch.lengths)
    hidden = output.spikes["1"]
    rates = hidden.sum((0, 1)) / batch.lengths.sum()  # type: ignore[union-attr]
    expected = (
        functional.cross_entropy(LastMembrane()(y, batch.lengths), batch.y) + 3.0 * rates.square().mean()
    )
    assert rates.mean() > 0.01
    torch.testing.assert_close(model.objective(output, batch.y), expected)


def test_rates_count_valid_steps_only(batch: Batch) -> None:
    model = make()
    with torch.no_grad():
        output = model(batch)
        rates, rate = mean_rates(output.spikes, output.lengths)
    first: Any = model.network[0]
    second: Any = model.network[1]
    lengths = batch.lengths.tolist()  # type: ignore[union-attr]
    with torch.no_grad():
        spikes = sum(float(second(first(batch.x[:n, [b]])[0])[0].sum()) for b, n in enumerate(lengths))
    assert float(rates["1"]) == pytest.approx(spikes / (int(batch.lengths.sum()) * 6))  # type: ignore[union-attr]
    assert rate == rates["1"]


def test_a_network_without_spikes_has_rate_zero() -> None:
    model = Classification([Dense(4, 3), LeakyIntegrator(3)], LastMembrane())
    output = model(Batch(torch.rand(3, 2, 4), torch.zeros(2, dtype=torch.int64)))
    rates, rate = mean_rates(output.spikes, output.lengths)
    assert rates == {} and float(rate) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_data_is_refused(bad: float) -> None:
    x = torch.rand(3, 2, 4)
    x[1, 1, 2] = bad
    with pytest.raises(NonFiniteError, match="1 NaN or Inf among 24"):
        make()(Batch(x, torch.zeros(2, dtype=torch.int64)))


def test_a_batch_of_a_plain_loader_is_refused_with_advice() -> None:
    plain: Any = [torch.rand(5, 2, 4), torch.zeros(2, dtype=torch.int64)]
    with pytest.raises(ShapeError, match=r"Batch\(x, y, lengths\), time first, got list: .*ArrayData"):
        make()(plain)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
def test_static_data_without_an_encoder_are_refused_with_advice() -> None:
    data = ArrayData(torch.rand(40, 4), torch.arange(40) % 3, temporal=False, batch_size=8)
    with pytest.raises(ShapeError, match=r"expected an encoder.*ArrayData says temporal=False.*Direct\(16\)"):
        quiet_trainer(max_epochs=1).fit(make(), datamodule=data)


def test_the_encoder_gives_static_data_time() -> None:
    model = make(encoder=Direct(6))
    x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    assert model(Batch(x, y)).y.shape == (6, 2, 3)
    encoded = model(Batch(Direct(6)(x), y), encoded=True)
    torch.testing.assert_close(encoded.y, model(Batch(x, y)).y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adamv"}, "did you mean 'adam'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip": "norn"}, "did you mean 'norm'"),
        ({"lr": 0.0}, "lr above 0"),
        ({"clip_at": -1.0}, "clip_at above 0"),
        ({"step_every": 0}, "step_every above 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make(**arguments)


def schedule(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> list[float]:
    """The learning rate over ten steps of five epochs."""
    trainer = SimpleNamespace(estimated_stepping_batches=10, max_epochs=5)
    monkeypatch.setattr(Classification, "trainer", trainer)
    made: Any = make(lr=0.4, **arguments).configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(made, dict):
            assert made["lr_scheduler"]["interval"] == "step"
            made["lr_scheduler"]["scheduler"].step()
    return rates


def test_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert schedule(monkeypatch) == [0.4] * 10
    halves = schedule(monkeypatch, schedule="step", step_every=2, step_factor=0.5)
    assert halves == pytest.approx([0.4] * 4 + [0.2] * 4 + [0.1] * 2)
    cosine = schedule(monkeypatch, schedule="cosine")
    assert cosine[0] == 0.4 and cosine[5] == pytest.approx(0.2) and cosine[9] < 0.02
    up = schedule(monkeypatch, schedule="onecycle")
    assert (
        up[0] == pytest.approx(0.4 / 25) and max(up) > 0.38 and up.index(max(up)) in (2, 3) and up[9] < 0.03
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", "Adam"), ("adamw", "AdamW"), ("adamax", "Adamax"), ("sgd", "SGD")],
)
def test_optimizers(name: Any, kind: str) -> None:
    made: Any = make(optimizer=name, betas=(0.8, 0.99)).configure_optimizers()
    assert type(made).__name__ == kind
    group = made.param_groups[0]
    assert group["momentum"] == 0.8 if kind == "SGD" else group["betas"] == (0.8, 0.99)


@pytest.mark.parametrize(("how", "largest"), [("norm", 0.01), ("value", 0.001)])
def test_clipping(how: Any, largest: float, batch: Batch) -> None:
    model = make(clip=how, clip_at=largest)
    model._fabric = None
    calls: dict[str, Any] = {}

    def clip(optimizer: Any, gradient_clip_val: float, gradient_clip_algorithm: str) -> None:
        calls.update(value=gradient_clip_val, algorithm=gradient_clip_algorithm)

    model.clip_gradients = clip  # type: ignore[method-assign, assignment]
    model.configure_gradient_clipping(None)
    assert calls == {"value": largest, "algorithm": how}


def test_spike_counts_read_out_too(batch: Batch) -> None:
    network: list[nn.Module] = [Dense(4, 3), LIF(3, tau_mem=5.0, threshold=0.1)]
    output = Classification(network, SpikeCount())(batch)
    counts: Tensor = output.spikes["1"].sum(0)
    torch.testing.assert_close(output.scores, counts)
    assert counts.sum() > 0


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("64-true", True), ("bf16-mixed", None)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_updates_are_fused_where_gradients_may_be_clipped(
    optimizer: Any, precision: Any, fused: bool | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make(clip="norm", clip_at=0.1, optimizer=optimizer, lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = quiet_trainer(max_steps=2, precision=precision, default_root_dir=tmp_path)
    random = np.random.default_rng(0)
    x, y = random.random((60, 9, 4), dtype=np.float32), random.integers(0, 3, 60)
    trainer.fit(model, ArrayData(x, y, temporal=True, batch_size=16, num_workers=0))
    assert {group["fused"] for group in trainer.optimizers[0].param_groups} == {fused}
    assert any(not torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
