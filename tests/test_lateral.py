"""Normalised thresholds and lateral connections: the published recursion, send-on-delta, gradients, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fires
from torch import Tensor, nn

from spiketide import (
    ALIF,
    LIF,
    Conv2d,
    Dense,
    Lateral,
    Layer,
    Normalized,
    NormalizedLIF,
    NormalizedReadout,
    Sequential,
    SynapticDelay,
    TemporalConv2d,
    TemporalConv3d,
    surrogate,
)
from spiketide.errors import ParameterError, ShapeError
from spiketide.layer import parameter_roles
from spiketide.probe import firing_rates, record
from spiketide.readouts import MaxMembrane, MeanMembrane
from spiketide.surrogate import Smooth, spike

EPSILON = 1e-8


def published(
    drive: Tensor, rows: Tensor, beta: Tensor | float, b: Tensor | float, *, lateral: bool, leaky: bool = True
) -> tuple[Tensor, Tensor]:
    """The recursion of the notes, sections 1 and 2, as it stands there; channels on the last axis of ``drive``."""
    rule = surrogate.Sigmoid(10.0, scaled=False)
    n, gram = rows.square().sum(1), rows @ rows.t()
    u, s, out = torch.zeros_like(drive[0]), torch.zeros_like(drive[0]), []
    for h in drive:
        # the reset by the threshold: theirs is b n, ours b (n + 1e-8), one rounding away
        r = s @ gram if lateral else s * b * (n + EPSILON)
        u = beta * (u - r) + ((1 - beta) if leaky else 1.0) * h
        s = spike(u / (n + EPSILON) - b, rule)
        out.append(s)
    return torch.stack(out), u


@pytest.mark.parametrize("lateral", [True, False])
@pytest.mark.parametrize("leaky", [True, False])
def test_dense_equals_the_published_recursion(lateral: bool, leaky: bool) -> None:
    torch.manual_seed(0)
    synapse = Dense(5, 7, bias=False)
    neuron = NormalizedLIF(
        7, decay=0.8, threshold=0.3, leaky=leaky, reset="none" if lateral else "soft", learn=("threshold",)
    )
    layer: Layer = (Lateral if lateral else Normalized)(synapse, neuron).double()
    x = torch.randn(60, 3, 5, dtype=torch.float64, requires_grad=True)
    y, (_, state) = layer(x)
    assert_fires(y)
    weight = synapse.weight.detach().clone().requires_grad_()
    raw = neuron.threshold.raw.detach().clone().requires_grad_()
    given = x.detach().clone().requires_grad_()
    want, u = published(
        given @ weight.t(), weight, neuron.membrane_decay(), raw.exp(), lateral=lateral, leaky=leaky
    )
    assert torch.equal(y, want)
    # their membrane is before the reset, in units of the drive; without lateral connections ours is behind it
    n = weight.square().sum(1) + EPSILON
    behind = u / n - (0.0 if lateral else want[-1] * raw.exp())
    torch.testing.assert_close(state[0], behind, rtol=1e-9, atol=1e-12)
    cotangent = torch.randn_like(y)
    got = torch.autograd.grad((y * cotangent).sum(), [x, synapse.weight, neuron.threshold.raw])
    wanted = torch.autograd.grad((want * cotangent).sum(), [given, weight, raw])
    for a, c in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lateral", [True, False])
def test_a_convolution_equals_the_published_recursion_at_every_place(lateral: bool) -> None:
    torch.manual_seed(0)
    synapse = TemporalConv2d(3, 6, (4, 3), dilation=(2, 1), padding="same", bias=False)
    neuron = NormalizedLIF(
        (6, 8), decay=0.7, threshold=0.25, learn=("decay", "threshold"), reset="none" if lateral else "soft"
    )
    layer = (Lateral if lateral else Normalized)(synapse, neuron).double()
    x = torch.randn(30, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    assert_fires(y)
    rows = synapse.weight.flatten(1)
    want, _ = published(
        synapse(x)[0].movedim(2, -1), rows, neuron.decay(), neuron.threshold().flatten(), lateral=lateral
    )
    want = want.movedim(-1, 2)
    assert torch.equal(y, want)
    cotangent = torch.randn_like(y)
    parameters = [x, *layer.parameters()]
    got = torch.autograd.grad((y * cotangent).sum(), parameters)
    wanted = torch.autograd.grad((want * cotangent).sum(), parameters)
    for a, c in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-9)


def test_three_axes_and_images_and_delays_have_lateral_connections_too() -> None:
    torch.manual_seed(0)
    for synapse, shape in (
        (TemporalConv3d(2, 5, 3, bias=False), (2, 4, 6)),
        (Conv2d(2, 5, 3, padding=1, bias=False), (2, 4, 6)),
        (SynapticDelay(9, 5, 6, width=0.23), (9,)),
    ):
        space = shape[1:]
        layer = Lateral(synapse, NormalizedLIF((5, *space), decay=0.8, threshold=0.2, reset="none")).double()
        layer.eval()
        x = torch.randn(25, 2, *shape, dtype=torch.float64)
        y, _ = layer(x)
        assert_fires(y)
        want, _ = published(
            synapse(x)[0].movedim(2, -1), synapse.rows(), *layer.neuron.coefs()[:2], lateral=True
        )
        assert torch.equal(y, want.movedim(-1, 2))


def test_the_membrane_is_the_error_of_what_the_spikes_say() -> None:
    """Notes, section 2.1: u = W^T (y - z), with y the average of the input and z what the spikes decode to."""
    torch.manual_seed(0)
    layer = Lateral(
        Dense(4, 12, bias=False), NormalizedLIF(12, decay=0.9, threshold=0.4, reset="none")
    ).double()
    beta = float(layer.neuron.decay())
    w = layer.synapse.weight.detach()
    x = torch.randn(200, 2, 4, dtype=torch.float64).cumsum(0) / 5
    average, decoded, state = (
        torch.zeros(2, 4, dtype=torch.float64),
        torch.zeros(2, 4, dtype=torch.float64),
        None,
    )
    spikes = torch.zeros(2, 12, dtype=torch.float64)
    fired = 0.0
    for now in x:
        average = beta * average + (1 - beta) * now
        decoded = beta * (decoded + spikes @ w)
        y, state = layer(now[None], state)
        spikes, membrane = y[0].detach(), state[1][0]
        fired += float(spikes.sum())
        torch.testing.assert_close(
            membrane.detach() * (w.square().sum(1) + EPSILON), (average - decoded) @ w.t(), rtol=0, atol=1e-11
        )
    assert fired > 50


def test_the_threshold_does_not_know_the_scale_of_the_weights() -> None:
    torch.manual_seed(0)
    layer = Normalized(Dense(5, 7, bias=False), NormalizedLIF(7, threshold=0.3)).double()
    x = torch.randn(40, 2, 5, dtype=torch.float64)
    y, _ = layer(x)
    with torch.no_grad():
        layer.synapse.weight.mul_(3.0)
    assert_fires(y)
    assert torch.equal(layer(3.0 * x)[0], y) and not torch.equal(layer(x)[0], y)


@pytest.mark.parametrize("connections", ["synapse", "free"])
def test_gradients_are_those_of_finite_differences(connections: str) -> None:
    torch.manual_seed(0)
    neuron = NormalizedLIF(
        (3, 2), decay=0.7, threshold=0.4, reset="none", learn=("decay", "threshold"), engine="reference",
        surrogate=Smooth(surrogate.Sigmoid(10.0)),
    )  # fmt: skip
    layer = Lateral(TemporalConv2d(2, 3, (2, 3), bias=False), neuron, connections=connections).double()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(
        run, (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    )


def test_a_free_matrix_begins_at_that_of_the_synapse() -> None:
    torch.manual_seed(0)
    synapse = Dense(5, 7, bias=False)
    bound = Lateral(synapse, NormalizedLIF(7, threshold=0.3, reset="none"))
    free = Lateral(synapse, NormalizedLIF(7, threshold=0.3, reset="none"), connections="free")
    x = torch.randn(40, 2, 5)
    torch.testing.assert_close(free.weight, bound.matrix())
    assert torch.equal(free(x)[0], bound(x)[0])
    torch.testing.assert_close(bound.matrix().diagonal(), torch.ones(7))
    with torch.no_grad():
        free.weight.zero_()
    assert not torch.equal(free(x)[0], bound(x)[0])


def test_without_normalisation_the_drive_is_as_it_is() -> None:
    torch.manual_seed(0)
    synapse = Dense(5, 7, bias=False).double()
    layer = Lateral(synapse, LIF(7, tau_mem=5.0, threshold=0.4, reset="none").double(), normalized=False)
    x = torch.randn(40, 2, 5, dtype=torch.float64)
    y, _ = layer(x)
    assert_fires(y)
    w, beta = synapse.weight.detach(), float(layer.neuron.membrane_decay())
    v, s = torch.zeros(2, 7, dtype=torch.float64), torch.zeros(2, 7, dtype=torch.float64)
    for t, now in enumerate(x):
        v = beta * v + now @ w.t() - beta * (s @ (w @ w.t()))
        s = (v > layer.neuron.threshold()).double()
        assert torch.equal(y[t], s)


def test_the_published_read_outs() -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 3, 6, dtype=torch.float64)
    lengths = torch.tensor([20, 7, 1])
    mean = NormalizedReadout(Dense(6, 4, bias=False), threshold=torch.rand(4)).double()
    w, b = mean.synapse.weight.detach(), mean.threshold().detach()
    y, state = mean(x, lengths=lengths)
    assert state == ((), ())
    for i, n in enumerate(lengths.tolist()):
        want = (x[:n, i] @ w.t()).mean(0) / (w.square().sum(1) + EPSILON) - b
        torch.testing.assert_close(MeanMembrane()(y, lengths)[i], want)
        assert not y[n:, i].any()
    largest = NormalizedReadout(Dense(6, 4, bias=False), decay=0.7).double()
    w, b = largest.synapse.weight.detach(), largest.threshold().detach()
    y, _ = largest(x)
    beta = float(largest.membrane.decay().detach())
    p, seen = torch.zeros(3, 4, dtype=torch.float64), []
    for now in x:
        p = beta * p + (1 - beta) * (now @ w.t())
        seen.append(p)
    want = torch.stack(seen).amax(0) / (w.square().sum(1) + EPSILON) - b
    torch.testing.assert_close(MaxMembrane()(y), want)
    whole, _ = largest(x)
    first, carried = largest(x[:9])
    rest, _ = largest(x[9:], carried)
    torch.testing.assert_close(torch.cat([first, rest]), whole)


def test_one_decay_for_a_layer_a_channel_or_each_neuron() -> None:
    for shared, count in (("layer", 1), ("channel", 6), ("neuron", 48)):
        neuron = NormalizedLIF((6, 8), decay_per=shared, learn=("decay", "threshold"))
        roles = {p.numel(): role for p, role in parameter_roles(neuron).items()}
        assert roles[count] == ("time_constants" if count != 6 else roles[6])
        assert neuron.decay.raw.numel() == count and neuron.threshold.raw.numel() == 6
    layer = Lateral(
        Dense(5, 7, bias=False), NormalizedLIF(7, decay_per="neuron", learn=("decay",), reset="none")
    )
    layer(torch.randn(10, 2, 5))[0].sum().backward()
    assert tuple(layer.neuron.decay.raw.grad.shape) == (7,)


def test_alone_it_scales_its_input() -> None:
    neuron = NormalizedLIF(3, decay=0.8, threshold=0.5).double()
    x = torch.rand(30, 2, 3, dtype=torch.float64) * 2
    y, _ = neuron(x)
    assert_fires(y)
    v = torch.zeros(2, 3, dtype=torch.float64)
    for t, now in enumerate(x):
        v = float(neuron.decay()) * v + float(neuron.gain()) * now
        s = (v > 0.5).double()
        assert torch.equal(y[t], s)
        v = v - 0.5 * s


def test_feature_maps_run_the_same_whatever_lies_side_by_side() -> None:
    torch.manual_seed(0)
    neuron = NormalizedLIF((4, 5, 3), decay=0.8, threshold=torch.rand(4, 1, 1) + 0.2, learn=("threshold",))
    x = torch.randn(12, 2, 4, 5, 3)
    last = x.movedim(2, -1).contiguous().movedim(-1, 2)
    lengths = torch.tensor([12, 5])
    outcomes = []
    for given in (x, last):
        y, (v,) = neuron(given, lengths=lengths)
        (grad,) = torch.autograd.grad(
            (y.sum(2) * torch.arange(3.0)).sum() + v.square().sum(), neuron.threshold.raw
        )
        outcomes.append((y, v, grad))
    assert_fires(outcomes[0][0])
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and torch.equal(outcomes[0][1], outcomes[1][1])
    torch.testing.assert_close(outcomes[0][2], outcomes[1][2])


def test_probes_see_the_neurons_inside() -> None:
    model = Sequential(Lateral(Dense(5, 7, bias=False), NormalizedLIF(7, threshold=0.3, reset="none")))
    with record(model) as records:
        y, _ = model(torch.randn(20, 2, 5))
    assert firing_rates(records) == pytest.approx({"0.neuron": float(y.detach().mean())})


def test_what_does_not_go_together_is_refused() -> None:
    dense = Dense(5, 7, bias=False)
    with pytest.raises(ParameterError, match="reset='none'"):
        Lateral(dense, NormalizedLIF(7))
    with pytest.raises(ParameterError, match="ALIF"):
        Lateral(dense, ALIF(7, reset="none"))
    with pytest.raises(ParameterError, match="scale_input=False"):
        Lateral(dense, LIF(7, reset="none", scale_input=True))
    with pytest.raises(ParameterError, match="as many outputs"):
        Normalized(dense, NormalizedLIF(8))
    with pytest.raises(ParameterError, match="a synapse first"):
        Normalized(nn.Linear(5, 7), NormalizedLIF(7))
    with pytest.raises(ParameterError, match="a neuron second"):
        Normalized(dense, nn.ReLU())
    with pytest.raises(ParameterError, match="connections 'other'"):
        Lateral(dense, NormalizedLIF(7, reset="none"), connections="other")
    with pytest.raises(ParameterError, match="no leak"):
        NormalizedLIF(7, leaky=False, learn=("decay",))
    with pytest.raises(ParameterError, match="decay expected"):
        NormalizedLIF(7, decay=1.0)
    with pytest.raises(ParameterError, match="for each channel"):
        Normalized(TemporalConv2d(2, 3, 3), NormalizedLIF((3, 4), decay_per="neuron", learn=("decay",)))(
            torch.zeros(3, 1, 2, 4)
        )
    layer = Lateral(dense, NormalizedLIF(7, reset="none"))
    with pytest.raises(ShapeError, match="synapse, what follows"):
        layer(torch.zeros(3, 1, 5), (torch.zeros(1, 7),))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_and_in_half_precision() -> None:
    torch.manual_seed(0)
    neuron = NormalizedLIF((4, 5), threshold=0.3, reset="none", learn=("decay", "threshold"))
    model = Sequential(
        Lateral(TemporalConv2d(2, 4, (3, 3), bias=False), neuron),
        nn.Flatten(),
        NormalizedReadout(Dense(20, 3, bias=False)),
    )
    x, outcomes = torch.randn(12, 3, 2, 5), []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        y, _ = run(x)
        y.square().sum().backward()
        outcomes.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = model(x)
    assert y.dtype == torch.bfloat16 and bool(torch.isfinite(y).all())


def test_the_page_on_convolutions_in_time_runs() -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "convolve_in_time.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert all(p.grad is not None for p in names["network"].parameters())
    assert tuple(names["spikes"].shape) == (100, 2, 16, 40) and tuple(names["more"].shape) == (1, 2, 16, 40)
    assert_fires(names["spikes"])
