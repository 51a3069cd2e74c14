"""Broken networks are told what is wrong with them, healthy ones nothing."""

from __future__ import annotations

import contextlib
import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

from spiketide.checkpointed import Checkpointed
from spiketide.compose import Recurrent, Sequential
from spiketide.diagnose import Diagnosis, Row, diagnose, diagnose_first_spikes
from spiketide.encoders import Latency, Poisson
from spiketide.errors import DataError, ShapeError
from spiketide.layer import Layer
from spiketide.neurons import LIF, LeakyIntegrator, StepNeuron
from spiketide.norms import BatchNorm, Dropout
from spiketide.readouts import LastMembrane
from spiketide.surrogate import Triangle
from spiketide.synapses import Dense
from spiketide.timing import Network, TimingLinear
from spiketide.types import Batch


def batch(scale: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(30, 16, 20, generator=generator) < 0.2).float() * scale
    return Batch(
        x, torch.randint(0, 5, (16,), generator=generator), torch.randint(20, 31, (16,), generator=generator)
    )


def network(**lif) -> Sequential:
    torch.manual_seed(0)
    model = Sequential(
        Dense(20, 40),
        LIF(40, tau_mem=5.0, **lif),
        Dense(40, 30),
        LIF(30, tau_mem=5.0),
        Dense(30, 5),
        LeakyIntegrator(5, tau_mem=20.0),
    )
    with torch.no_grad():
        dense(model, 0).weight.mul_(2.0)
        dense(model, 2).weight.mul_(2.0)
    return model


def dense(model: Sequential, index: int) -> Dense:
    layer = model.get_submodule(str(index))
    assert isinstance(layer, Dense)
    return layer


def said(model: nn.Module, batch: Batch, *words: str, **arguments) -> str:
    """The one message with all these words."""
    found = [m for m in diagnose(model, batch, **arguments).messages if all(word in m for word in words)]
    assert len(found) == 1, diagnose(model, batch, **arguments).messages
    return found[0]


def test_a_healthy_network_gets_no_message() -> None:
    model = network()
    result = diagnose(model, batch())
    assert result.messages == [] and result.healthy
    assert [row.name for row in result.rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row.kind for row in result.rows] == ["Dense", "LIF", "Dense", "LIF", "Dense", "LeakyIntegrator"]
    hidden, out = result.rows[1], result.rows[5]
    assert hidden.rate is not None and 0.02 < hidden.rate < 0.5
    assert hidden.hz == pytest.approx(1000 * hidden.rate)  # dt is 1 ms
    assert out.rate is None and out.hz is None and out.silent is None
    assert out.output_gradient is not None and out.output_gradient > 0
    assert result.loss is not None and 0 < result.loss < 10
    assert all(row.finite for row in result.rows)


def test_the_numbers_are_the_gradients() -> None:
    model = network()
    data = batch()
    result = diagnose(model, data, readout=LastMembrane())
    y, _ = model(data.x, lengths=data.lengths)
    loss = nn.functional.cross_entropy(LastMembrane()(y, data.lengths), data.y)
    y.retain_grad()
    loss.backward()
    assert result.loss == pytest.approx(loss.item())
    weights = [dense(model, 0).weight.grad, dense(model, 0).bias.grad]
    assert result.rows[0].parameter_gradient == pytest.approx(
        torch.cat([g.flatten() for g in weights]).norm().item()
    )
    assert result.rows[5].output_gradient == pytest.approx(y.grad.norm().item())


def test_hertz_from_dt() -> None:
    data = batch()
    slow = Sequential(
        Dense(20, 40), LIF(40, tau_mem=50.0, dt=10.0), Dense(40, 5), LeakyIntegrator(5, tau_mem=20.0)
    )
    with torch.no_grad():
        dense(slow, 0).weight.mul_(2.0)
    row = diagnose(slow, data).rows[1]
    assert row.rate and row.hz == pytest.approx(100 * row.rate)


def test_hertz_by_the_steps_of_the_data() -> None:
    data, model = batch(), network()
    with torch.no_grad():
        dense(model, 0).weight.mul_(2.0)
    row = diagnose(model, data, step_ms=4.0).rows[1]
    assert row.rate and row.hz == pytest.approx(250 * row.rate)


def test_a_task_stands_for_its_parts() -> None:
    from spiketide.training import Classification, Labelling, SingleSpike

    data, model = batch(), network()
    task = Classification(model, LastMembrane())
    whole = diagnose(task, data)
    parts = diagnose(model, data, readout=task.scores, loss=task.criterion)
    assert whole.rows == parts.rows and whole.loss == parts.loss != diagnose(model, data).loss
    labels = torch.randint(0, 5, data.x.shape[:2], generator=torch.Generator().manual_seed(1))
    labels[::3] = -1
    steps = Batch(data.x, labels, data.lengths)
    by_step = diagnose(Labelling(model), steps)
    assert by_step.loss is not None and by_step.loss == pytest.approx(diagnose(model, steps).loss)
    with pytest.raises(ShapeError, match=r"labels of steps, \(30, 16\), got \(29, 16\)"):
        diagnose(model, Batch(data.x, labels[1:], data.lengths))
    first = SingleSpike([TimingLinear(4, 8), TimingLinear(8, 2)])
    images = Batch(torch.tensor([[1.0, 0.9, 0.5, 0.1]]), torch.tensor([0]))
    found = diagnose(first, images)
    assert (
        found.rows and found.rows == diagnose_first_spikes(first.network, images, encoder=first.encoder).rows
    )


def test_dead() -> None:
    message = said(network(threshold=1e6), batch(), "layer 1 (LIF)")
    assert message.startswith("layer 1 (LIF): 100 % of the neurons never fire on this batch: raise the gain")
    model = network()
    with torch.no_grad():
        dense(model, 2).bias[:21] = -100.0  # 21 of 30
        dense(model, 2).bias[21:] = 0.3
    assert said(model, batch(), "never fire").startswith("layer 3 (LIF): 70 %")


def test_saturated() -> None:
    model = network()
    with torch.no_grad():
        dense(model, 0).bias[:10] = 100.0  # 10 of 40
    message = said(model, batch(), "layer 1 (LIF)")
    assert (
        "25 % of the neurons fire in more than 50 % of the steps" in message and "lower the gain" in message
    )


def test_vanishing() -> None:
    model = network()
    with torch.no_grad():
        dense(model, 2).weight.mul_(1e-5)
        dense(model, 2).bias.copy_(torch.linspace(0.5, 2.5, 30))
    message = said(model, batch(), "gradients vanish")
    assert "at layer 5 (LeakyIntegrator) to" in message and "at layer 1 (LIF)" in message


def test_exploding() -> None:
    model = network()
    with torch.no_grad():
        dense(model, 4).weight.mul_(1e5)
    data = batch()
    assert "at layer 3 (LIF)" in said(model, data, "gradients explode") or "at layer 1" in said(
        model, data, "gradients explode"
    )
    assert "norm" in said(model, data, "layer 2 (Dense)", "gradient of its parameters", "clip")


class Cut(Layer):
    """Cuts the graph."""

    def forward(self, x, state=None, *, lengths=None):
        return x.detach(), ()


def test_a_cut_gradient() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:4], Cut(), *layers[4:])
    message = said(model, batch(), "no gradient reaches 0.weight, 0.bias, 2.weight, 2.bias")
    assert "detach" in message
    assert said(model, batch(), "no gradient reaches the output of layer 1")


def hard(x, v, decay, threshold):
    """The mistake: a comparison in the place of ``spike``."""
    v = decay * v + x
    s = (v > threshold).to(v.dtype)
    return s, v - threshold * s


def untraceable(x, v, decay, threshold):
    """The same, in a step that runs as a loop of torch."""
    v = (decay * v + x).cumsum(-1).diff(dim=-1, prepend=torch.zeros_like(v[..., :1]))
    s = torch.sign((v - threshold).clamp(min=0))
    return s, v - threshold * s


class HardLayer(Layer):
    """The same in a layer of one's own."""

    def forward(self, x, state=None, *, lengths=None):
        return (x.cumsum(0) > 1.0).to(x.dtype), ()


def hard_neuron(n: int, step=hard) -> StepNeuron:
    said_at_once = pytest.warns(UserWarning, match="no gradient passes the step's output")
    with said_at_once if step is hard else contextlib.nullcontext():
        return StepNeuron(n, step, states=("v",), constants={"decay": 0.8, "threshold": 1.0})


WALL = "a comparison such as (v > threshold) lets no gradient through: it needs spiketide.spike"


def test_a_step_that_fires_by_a_comparison() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:3], hard_neuron(30), *layers[4:])
    result = diagnose(model, batch())
    (message,) = result.messages
    assert message.startswith(
        "no gradient reaches layer 0 (Dense), layer 2 (Dense): layer 3 (StepNeuron) lets none through."
    )
    assert WALL in message and "surrogate" not in message
    assert result.rows[2].parameter_gradient == 0.0 and result.rows[4].parameter_gradient


def test_a_recurrence_that_fires_by_a_comparison() -> None:
    layers = list(network().children())
    model = Sequential(layers[0], Recurrent(hard_neuron(40), Dense(40, 40)), *layers[2:])
    message = said(model, batch(), "no gradient", WALL)
    assert message.startswith(
        "no gradient reaches layer 0 (Dense), layer 1.synapse (Dense): layer 1.neuron (StepNeuron) lets none"
    )


def test_a_comparison_where_nothing_before_is_trained() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:3], hard_neuron(30), *layers[4:])
    for p in (*dense(model, 0).parameters(), dense(model, 2).weight):
        p.requires_grad_(False)
    assert said(model, batch(), "no gradient reaches layer 2 (Dense): layer 3 (StepNeuron)", WALL)


@pytest.mark.filterwarnings("ignore")
def test_a_comparison_in_a_step_that_nothing_reads() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:3], hard_neuron(30, untraceable), *layers[4:])
    assert "If it has that: none of its membranes" in said(model, batch(), "layer 3 (StepNeuron) lets", WALL)


def test_a_comparison_in_a_layer_of_ones_own() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:3], HardLayer(), *layers[4:])
    assert WALL in said(model, batch(), "no gradient reaches 0.weight, 0.bias, 2.weight, 2.bias", "detach")


def test_membranes_out_of_reach_of_a_narrow_surrogate() -> None:
    message = said(network(threshold=1e3, surrogate=Triangle(1.0)), batch(), "no gradient")
    assert message.startswith("no gradient reaches layer 0 (Dense): layer 1 (LIF) lets none through. None of")
    assert "a wider surrogate" in message and "spiketide.spike" not in message


def test_gradients_through_walls_are_looked_for_in_chunks_too() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:3], hard_neuron(30), *layers[4:])
    assert said(Checkpointed(model), batch(), "layer layer.3 (StepNeuron) lets none through", WALL)
    whole, parts = diagnose(network(), batch()), diagnose(Checkpointed(network()), batch())
    assert parts.messages == []
    for row, other in zip(whole.rows, parts.rows, strict=True):
        assert other.output_gradient == (row.output_gradient and pytest.approx(row.output_gradient))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (batch().x, r"got a tensor: pass spiketide\.Batch\(x, y\), y the labels"),
        ((batch().x, batch().y), r"got tuple: pass spiketide\.Batch\(\*batch\)"),
        (batch().x.numpy(), r"got ndarray: pass spiketide\.Batch\(x, y\)"),
    ],
)
def test_something_that_is_no_batch(given, words: str) -> None:
    with pytest.raises(
        ShapeError, match="diagnose expected a spiketide.Batch of inputs x and labels y.*" + words
    ):
        diagnose(network(), given)
    with pytest.raises(ShapeError, match="diagnose_first_spikes expected a spiketide.Batch.*" + words):
        diagnose_first_spikes(Network(TimingLinear(4, 2)), given)


def test_nothing_to_train() -> None:
    model = network()
    for p in model.parameters():
        p.requires_grad_(False)
    result = diagnose(model, batch())
    assert [m for m in result.messages if "no parameter to train" in m]
    assert all(row.parameter_gradient is None and row.output_gradient is None for row in result.rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite(value: float) -> None:
    model = network()
    with torch.no_grad():
        dense(model, 2).weight[3, 1] = value
    result = diagnose(model, batch())
    assert "parameter 2.weight (weights): 1 of 1200 values are NaN or Inf" in result.messages[0]
    assert len(result.messages) == 1  # what follows from it is not told again
    assert [row.name for row in result.rows if not row.finite] == ["2"] and result.loss is None
    assert "NO" in str(result)


def test_a_time_constant_that_is_not_finite() -> None:
    # a copy, because a copied parameter forgets its role, and its module has to know it
    model = copy.deepcopy(network(learn=("tau_mem",)))
    assert diagnose(model, batch()).rows[1].parameter_gradient  # a neuron's constants belong to its row
    assert [row.name for row in diagnose(model, batch()).rows] == ["0", "1", "2", "3", "4", "5"]
    (tau,) = model.get_submodule("1").parameters()
    with torch.no_grad():
        tau.view(-1)[0] = float("nan")
    message = said(model, batch(), "time_constants")
    assert (
        message.startswith("parameter 1.tau_mem.raw (time_constants): 1 of 40 values")
        and "lower learning rate" in message
    )


def test_an_output_that_overflows() -> None:
    model = network()
    with torch.no_grad():
        dense(model, 4).weight.fill_(3e38)
    message = said(model, batch(), "NaN or infinity")
    assert message.startswith("layer 5 stopped the forward: LeakyIntegrator expected finite input")


class Unchecked(LeakyIntegrator):
    """Does not look at its numbers, as no neuron does on a GPU."""

    def _check_finite(self, *args) -> None:
        pass


def test_an_output_that_overflows_unnoticed() -> None:
    layers = list(network().children())[:5]
    model = Sequential(*layers, Unchecked(5))
    with torch.no_grad():
        dense(model, 4).weight.fill_(3e38)
    result = diagnose(model, batch())
    assert result.messages == [
        said(model, batch(), "layer 5 (Unchecked): NaN or Inf in its output", "overflow")
    ]
    assert [row.name for row in result.rows if not row.finite] == ["5"]
    json.dumps(result.to_dict(), allow_nan=False)


class Steep(torch.autograd.Function):
    """The identity, with an infinite derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0.0


class Wall(Layer):
    def forward(self, x, state=None, *, lengths=None):
        return Steep.apply(x), ()


def test_a_gradient_that_is_not_finite() -> None:
    layers = list(network().children())
    model = Sequential(*layers[:4], Wall(), *layers[4:])
    assert said(model, batch(), "layer 3 (LIF): NaN or Inf in its gradient", "on the way back")


def test_a_loss_that_is_not_finite() -> None:
    def broken(scores: Tensor, y: Tensor) -> Tensor:
        return scores.sum() * 0 + float("inf")

    assert "read-out, the loss and the labels" in said(network(), batch(), "the loss is inf", loss=broken)


def test_input() -> None:
    data = batch()
    assert "every value of this batch is 0" in said(network(), batch(0.0), "input")
    assert "values up to 255" in said(network(), batch(255.0), "input")
    x = data.x.clone()
    x[0, 0, :3] = float("nan")
    result = diagnose(network(), data._replace(x=x))
    assert result.messages == [
        "input: 3 of 9600 values are NaN or Inf: clean the data. Nothing else was looked at."
    ]
    assert result.rows == [] and "NaN" in str(result)
    with pytest.raises(DataError, match="samples"):
        diagnose(network(), Batch(torch.zeros(30, 0, 20), torch.zeros(0, dtype=torch.int64)))


def test_static_data_through_an_encoder() -> None:
    static = Batch(torch.rand(16, 20, generator=torch.Generator().manual_seed(0)), batch().y)
    assert diagnose(network(), static, encoder=Latency(20)).rows[1].rate
    with pytest.raises(ShapeError):
        diagnose(network(), static)
    silent = static._replace(x=static.x * 0.4)
    message = said(network(), silent, "the encoder gives no spike", encoder=Latency(20, threshold=0.5))
    assert message.startswith("input")


class Scores(nn.Module):
    """A model with its own read-out, not a Layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        return LastMembrane()(self.network(x)[0])


def test_a_model_that_gives_scores() -> None:
    data = batch()
    result = diagnose(Scores(), data._replace(lengths=None))
    assert result.messages == [] and result.rows[1].name == "network.1"
    assert result.loss == pytest.approx(
        nn.functional.cross_entropy(LastMembrane()(network()(data.x)[0]), data.y).item()
    )


class Maps(Layer):
    def forward(self, x, state=None, *, lengths=None):
        return x.unsqueeze(-1), ()


def test_an_output_without_classes_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(T, B, C\)"):
        diagnose(Sequential(network(), Maps()), batch())


def test_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = Sequential(Dense(20, 40), BatchNorm(40), LIF(40), Dropout(0.3), Dense(40, 5), LeakyIntegrator(5))
    model.zero_grad()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    diagnose(model, batch(), encoder=None)
    diagnose(model, Batch(torch.rand(16, 20), batch().y), encoder=Poisson(10))
    torch.set_rng_state(random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training
    diagnose(model, batch())
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        assert diagnose(model.eval(), batch()).rows[0].parameter_gradient  # also under no_grad
    assert not model.training


def test_table_and_json() -> None:
    model = network(threshold=1e6)
    result = diagnose(model, batch())
    lines = str(result).splitlines()
    assert " ".join(lines[0].split()) == "layer kind rate Hz silent saturated |grad out| |grad par| finite"
    assert lines[2].split()[:5] == ["1", "LIF", "0.0000", "0.0", "100%"]
    assert lines[7].startswith("loss ") and lines[8].startswith("- layer 1 (LIF): 100 %")
    assert len({len(line) for line in lines[:7]}) <= 2  # aligned
    back = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert back["healthy"] is False and back["messages"] == result.messages
    assert back["layers"][1]["silent"] == 1.0 and back["layers"][0]["rate"] is None
    assert "- nothing wrong found" in str(diagnose(network(), batch()))
    with torch.no_grad():
        dense(model, 0).weight.fill_(math.nan)
    json.dumps(diagnose(model, batch()).to_dict(), allow_nan=False)
    row = Row("0", "Dense", output_gradient=math.inf, parameter_gradient=0.5)
    plain = Diagnosis([row], ["gradients explode"], math.nan).to_dict()
    assert plain["loss"] is None and plain["layers"][0]["output_gradient"] is None
    assert plain["layers"][0]["parameter_gradient"] == 0.5
