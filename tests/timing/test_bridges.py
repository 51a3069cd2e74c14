"""Spike times and spike trains: a timing network in front of the rest of the library, and behind it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide import LIF, Batch, Dense, LeakyIntegrator, Recurrent, Sequential
from spiketide.data import Digits
from spiketide.encoders import Latency, Poisson
from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.readouts import MaxMembrane
from spiketide.timing import (
    FirstSpikes,
    FixedSlope,
    Flatten,
    IntensityToLatency,
    Network,
    Silence,
    TimingConv2d,
    TimingLinear,
    calibrate,
    to_times,
    to_train,
)
from spiketide.training import Classification

INF = float("inf")
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "single_spike_networks.md").read_text()


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    data = Digits(batch_size=60)
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.val_dataloader())).x.view(-1, 1, 8, 8)


@pytest.fixture
def network(digits: torch.Tensor) -> Network:
    torch.manual_seed(0)
    made = Network(
        TimingConv2d(1, 6, 3, psp=FixedSlope(16.0, 16.0), stop=32.0),
        Flatten(),
        TimingLinear(216, 30, psp=FixedSlope(32.0, 16.0), stop=48.0, exact=True),
    )
    calibrate(made, IntensityToLatency(16)(digits), [0.3, 0.3])
    return made


def test_times_to_train_and_back(digits: torch.Tensor, network: Network) -> None:
    times = network(IntensityToLatency(16)(digits)).detach()
    train = to_train(times, 48)
    # a plain loop
    for b in range(3):
        for n in range(30):
            when = float(times[b, n])
            expected = [1.0 if when != INF and int(when) == t else 0.0 for t in range(48)]
            assert train[:, b, n].tolist() == expected
    assert float(torch.isfinite(times).float().mean()) > 0.05 and bool((train.sum(0) <= 1).all())
    assert torch.equal(to_times(train), times.floor())
    assert torch.equal(
        to_times(train[:40]), times.floor().masked_fill(times >= 40, INF)
    )  # cut: later ones are gone


def test_in_front_of_recurrent_neurons(digits: torch.Tensor, network: Network) -> None:
    front = FirstSpikes(network, encoder=IntensityToLatency(16))
    x = front(digits)
    assert x.shape == (48, 60, 30) and x.unique().tolist() == [0.0, 1.0] and not x.requires_grad
    assert torch.equal(to_times(x), network(IntensityToLatency(16)(digits)).floor())
    behind = Sequential(
        Dense(30, 20),
        Recurrent(LIF(20, tau_mem=10.0, threshold=0.3, learn=("tau_mem",)), Dense(20, 20)),
        Dense(20, 10),
        LeakyIntegrator(10),
    )
    y, _ = behind(x)
    y.square().sum().backward()
    for name, parameter in behind.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    # the bridge itself hands no gradient on
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_gradient_of_the_layer_behind_is_that_of_the_train(
    digits: torch.Tensor, network: Network
) -> None:
    """A read-out that is linear in its input: ``dL/dW`` from the train by hand."""
    x = FirstSpikes(network, encoder=IntensityToLatency(16))(digits)
    dense = Dense(30, 4)
    y, _ = dense(x)
    y[10:40].sum().backward()
    by_hand = x[10:40].sum((0, 1)).expand(4, -1)
    assert float(by_hand.abs().sum()) > 0 and torch.equal(dense.weight.grad, by_hand)


def test_behind_a_layer_and_behind_an_encoder(digits: torch.Tensor) -> None:
    torch.manual_seed(0)
    late = Network(TimingLinear(64, 12, stop=24.0))
    x = digits.flatten(1)
    encoder = Latency(16)
    # an encoder into trains, one into times, and a train as it is
    assert torch.equal(FirstSpikes(late, encoder=encoder)(x), FirstSpikes(late)(encoder(x)))
    assert torch.equal(FirstSpikes(late)(encoder(x)), to_train(late(to_times(encoder(x))), 24))
    # only the first of many spikes counts
    noisy = Poisson(20, max_rate=500.0)(x)
    assert float(noisy.sum(0).max()) > 1
    first = to_train(to_times(noisy), 20)
    assert torch.equal(FirstSpikes(late)(noisy), FirstSpikes(late)(first))
    # the spikes of a layer
    spikes, _ = Sequential(Dense(64, 64), LIF(64, tau_mem=5.0, threshold=0.2))(encoder(x))
    assert float(spikes.detach().mean()) > 0.01
    out = FirstSpikes(late)(spikes)
    assert out.shape == (24, 60, 12) and float(out.sum()) > 0 and not out.requires_grad


def test_steps_cut_or_pad(network: Network, digits: torch.Tensor) -> None:
    whole = FirstSpikes(network, encoder=IntensityToLatency(16))(digits)
    short = FirstSpikes(network, encoder=IntensityToLatency(16), steps=40)(digits)
    long = FirstSpikes(network, encoder=IntensityToLatency(16), steps=60)(digits)
    assert torch.equal(short, whole[:40]) and float(whole[40:].sum()) > 0
    assert torch.equal(long[:48], whole) and float(long[48:].abs().sum()) == 0


def test_what_the_future_brings_changes_nothing_before(network: Network, digits: torch.Tensor) -> None:
    front = FirstSpikes(Network(TimingLinear(64, 12, stop=16.0)))
    train = Latency(16)(digits.flatten(1))
    other = train.clone()
    other[8:] = train[8:].flip(1)
    a, b = front(train), front(other)
    assert torch.equal(a[:8], b[:8]) and not torch.equal(a[8:], b[8:])


def test_as_the_encoder_of_a_task(network: Network, digits: torch.Tensor) -> None:
    task = Classification(
        network=[Dense(30, 20), LIF(20, tau_mem=10.0, threshold=0.3), Dense(20, 10), LeakyIntegrator(10)],
        readout=MaxMembrane(),
        encoder=FirstSpikes(network, encoder=IntensityToLatency(16)),
    ).eval()
    output = task(Batch(digits, torch.zeros(60, dtype=torch.int64)))
    assert output.scores.shape == (60, 10) and output.y.shape[0] == 48


def test_bad_input() -> None:
    late = Network(TimingLinear(64, 12, stop=24.0))
    with pytest.raises(ParameterError, match="expected a spiketide.timing.Network, got TimingLinear"):
        FirstSpikes(TimingLinear(64, 12))  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="steps"):
        FirstSpikes(late, steps=0)
    front = FirstSpikes(late)
    for x in (torch.zeros(3, 64), torch.zeros(5, 3, 64, dtype=torch.int64), [1.0]):
        with pytest.raises(ShapeError, match=r"expected a spike train \(T, B, \*N\).*IntensityToLatency"):
            front(x)
    with pytest.raises(ShapeError, match=r"TimingLinear expected spike times \(B, 64\)"):
        front(torch.zeros(5, 3, 63))
    train = torch.zeros(5, 3, 64)
    train[0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="1 NaN"):
        front(train)
    with pytest.raises(ShapeError, match="divide bytes by 255"):
        FirstSpikes(late, encoder=IntensityToLatency(24))(torch.full((1, 64), 255.0))


def test_dropout_is_off_in_evaluation(digits: torch.Tensor) -> None:
    front = FirstSpikes(
        Network(Silence(0.5), TimingLinear(64, 12, stop=24.0)), encoder=IntensityToLatency(24)
    )
    x = digits.flatten(1)
    assert torch.equal(front.eval()(x), front(x)) and not torch.equal(front.train()(x), front(x))


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            exec(block, names)
    # what the page says of its own numbers
    assert names["accuracy"] > 0.9 and names["accuracy_behind"] > 0.85
    assert names["size"] == (tmp_path / "digits.npz").stat().st_size
    assert names["binary_accuracy"] > 0.85
