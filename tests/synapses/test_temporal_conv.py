"""Convolutions over time: against sums written out, in chunks, with lengths, and what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spiketide import (
    LIF,
    AxonalDelay,
    Checkpointed,
    Dense,
    Recurrent,
    Sequential,
    TemporalConv1d,
    TemporalConv2d,
    TemporalConv3d,
)
from spiketide.errors import ParameterError, ShapeError
from spiketide.layer import unstreamable


def written_out(x: Tensor, layer: TemporalConv2d) -> Tensor:
    """``y_o[t, f] = b_o + sum w_ockl x_c[t + k d_t - back, f + l d_f - side]``, step by step, zeros outside."""
    steps, batch, _, width = x.shape
    weight, (d_t, d_f) = layer.weight.detach(), layer.dilation
    _, _, k_t, k_f = weight.shape
    reach = (k_t - 1) * d_t
    back, ahead = (reach, 0) if layer.padding == "causal" else (-(-reach // 2),) * 2
    side = -(-(k_f - 1) * d_f // 2)
    frames = x.new_zeros(steps + back + ahead, batch, x.shape[2], width + 2 * side)
    frames[back : back + steps, ..., side : side + width] = x
    y = x.new_zeros(frames.shape[0] - reach, batch, layer.c_out, width)
    for t, f, k, j in itertools.product(range(len(y)), range(width), range(k_t), range(k_f)):
        y[t, :, :, f] += frames[t + k * d_t, :, :, f + j * d_f] @ weight[:, :, k, j].T
    y = y[:: layer.stride[0], ..., :: layer.stride[1]]
    return y if layer.bias is None else y + layer.bias.detach()[:, None]


FORMS = list(itertools.product(["causal", "same"], [1, 3, 4], [1, 3], [2, 3], [(1, 1), (2, 1), (1, 2)]))


def make(form: tuple) -> tuple[TemporalConv2d, Tensor]:
    padding, k_t, d_t, k_f, stride = form
    torch.manual_seed(0)
    layer = TemporalConv2d(3, 5, (k_t, k_f), dilation=(d_t, 1), padding=padding, stride=stride).double()
    return layer, torch.randn(11, 4, 3, 7, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_sum_written_out(form: tuple) -> None:
    layer, x = make(form)
    y, _ = layer(x)
    torch.testing.assert_close(y.detach(), written_out(x, layer), rtol=0, atol=1e-12)
    assert tuple(y.shape[3:]) == layer.output_size(7)
    assert int(layer.lengths_after(torch.tensor([11]))) == len(y)


@pytest.mark.parametrize("form", FORMS)
def test_a_padded_batch_equals_each_sample_alone(form: tuple) -> None:
    layer, x = make(form)
    lengths = torch.tensor([11, 0, 1, 6])
    y, state = layer(x, lengths=lengths)
    for b, (n, after) in enumerate(zip(lengths.tolist(), layer.lengths_after(lengths).tolist(), strict=True)):
        alone, end = layer(x[:n, b : b + 1])
        assert len(alone) == after
        torch.testing.assert_close(y[:after, b], alone[:, 0], rtol=0, atol=1e-12)
        assert not y[after:, b].any()
        if state:
            torch.testing.assert_close(state[0][b], end[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("form", [form for form in FORMS if form[0] == "causal"])
def test_causal_ones_go_on_in_chunks_also_with_a_stride(form: tuple) -> None:
    layer, x = make(form)
    whole, end = layer(x)
    outputs, state = [], None
    for part in x.split([1, 0, 3, 2, 5]):
        y, state = layer(part, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=0, atol=1e-12)
    for got, want in zip(state, end, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_one_and_three_axes_against_torch(padding: str) -> None:
    torch.manual_seed(0)
    ends = (4, 0) if padding == "causal" else (2, 2)
    one = TemporalConv1d(2, 4, 3, dilation=2, padding=padding).double()
    x = torch.randn(9, 3, 2, dtype=torch.float64)
    want = functional.conv1d(functional.pad(x.permute(1, 2, 0), ends), one.weight, one.bias, dilation=2)
    torch.testing.assert_close(one(x)[0], want.permute(2, 0, 1), rtol=0, atol=1e-12)
    three = TemporalConv3d(2, 4, (3, 3, 1), dilation=(2, 1, 1), padding=padding, bias=False).double()
    x = torch.randn(9, 3, 2, 6, 5, dtype=torch.float64)
    image = functional.pad(x.permute(1, 2, 0, 3, 4), (0, 0, 1, 1, *ends))
    want = functional.conv3d(image, three.weight, dilation=(2, 1, 1))
    torch.testing.assert_close(three(x)[0], want.permute(2, 0, 1, 3, 4), rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    for layer in (
        TemporalConv2d(2, 3, (3, 2), dilation=(2, 1)).double(),
        TemporalConv2d(2, 3, (2, 3), padding="same").double(),
    ):
        x = torch.randn(5, 2, 2, 4, dtype=torch.float64, requires_grad=True)

        def run(x: Tensor, weight: Tensor, bias: Tensor, layer: TemporalConv2d = layer) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))[0]

        assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


def test_the_published_network_has_its_sizes() -> None:
    """102 of 101 steps, 131,535 parameters less the constants of the neurons and the read-out's (notes, section 4)."""
    sizes = ((3, (1, 1)), (64, (4, 3)), (64, (16, 9)))
    layers = [
        TemporalConv2d(c, 64, (4, 3), dilation=d, padding="same", bias=False, spread=0.15) for c, d in sizes
    ]
    x, _ = Sequential(*layers)(torch.rand(101, 1, 3, 40))
    assert tuple(x.shape) == (102, 1, 64, 40)
    assert [layer.weight.numel() for layer in layers] == [2304, 49152, 49152]
    assert [layer.ahead for layer in layers] == [1, 6, 24]  # 31 frames ahead, 310 ms
    for layer in layers:
        norm = layer.weight.detach().square().flatten(1).sum(1).mean()
        assert abs(float(norm) - 0.0225) < 0.002


def test_only_causal_ones_stream() -> None:
    ahead, causal = TemporalConv1d(2, 2, 3, padding="same"), TemporalConv1d(2, 2, 3)
    assert unstreamable(ahead) is ahead and unstreamable(causal) is None
    assert unstreamable(TemporalConv1d(2, 2, 3, stride=2)) is not None
    assert "streaming" not in TemporalConv1d.exempt, "an exemption of one layer must not become that of all"
    with pytest.raises(ParameterError, match="needs it whole"):
        Checkpointed(ahead)


def test_rows_have_all_taps_and_groups_do_not_see_each_other() -> None:
    layer = TemporalConv2d(4, 6, (3, 2), groups=2)
    rows = layer.rows()
    assert tuple(rows.shape) == (6, 2 * 2 * 6)
    gram = rows @ rows.t()
    assert not gram[:3, 3:].any() and bool((gram[:3, :3] != 0).all())
    torch.testing.assert_close(gram.diagonal(), layer.weight.square().flatten(1).sum(1))


def test_an_empty_sequence_gives_an_empty_one() -> None:
    for padding in ("causal", "same"):
        layer = TemporalConv2d(3, 5, (4, 3), padding=padding)
        assert tuple(layer(torch.zeros(0, 2, 3, 7))[0].shape) == (0, 2, 5, 7)
        assert tuple(layer(torch.zeros(6, 0, 3, 7))[0].shape)[1:] == (0, 5, 7)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ParameterError, match="padding of time 'valid'"):
        TemporalConv1d(1, 1, 3, padding="valid")
    with pytest.raises(ParameterError, match="kernel_size"):
        TemporalConv2d(1, 1, (3, 3, 3))
    with pytest.raises(ParameterError, match="groups to divide"):
        TemporalConv2d(3, 4, 3, groups=2)
    with pytest.raises(ParameterError, match="spread"):
        TemporalConv1d(1, 1, 3, spread=0.0)
    layer = TemporalConv2d(3, 4, (4, 3), space_padding=0)
    with pytest.raises(ShapeError, match=r"expected \(T, B, 3, F\), got \(10, 2, 40\)"):
        layer(torch.zeros(10, 2, 40))
    with pytest.raises(ShapeError, match="its kernel fits"):
        layer(torch.zeros(10, 2, 3, 2))
    with pytest.raises(ShapeError, match="another batch size"):
        layer(torch.zeros(10, 2, 3, 40), layer.initial_state(torch.zeros(10, 3, 3, 40)))
    with pytest.raises(ShapeError, match="floating point"):
        layer(torch.zeros(10, 2, 3, 40, dtype=torch.int64))


@pytest.mark.parametrize("options", [{"padding": "same"}, {"stride": 2}])
def test_looking_ahead_or_skipping_in_recurrence_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"Recurrent expected .* TemporalConv1d .* padding='causal'"):
        Recurrent(LIF(4), TemporalConv1d(4, 4, 3, **options))


def test_a_causal_kernel_in_recurrence_is_its_equation() -> None:
    torch.manual_seed(0)
    layer = Recurrent(LIF(4), TemporalConv1d(4, 4, 3, dilation=2, bias=False)).double()
    x = 2 * torch.rand(12, 2, 4, dtype=torch.float64)
    y, _ = layer(x)
    spikes, state = [torch.zeros(2, 4, dtype=torch.float64)] * 5, None
    weight = layer.synapse.weight
    for t in range(12):
        drive = x[t] + sum(spikes[-1 - 2 * k] @ weight[:, :, 2 - k].t() for k in range(3))
        s, state = layer.neuron(drive.unsqueeze(0), state)
        spikes.append(s[0])
    assert float(y.detach().sum()) > 5
    torch.testing.assert_close(y, torch.stack(spikes[5:]), rtol=0, atol=0)


def test_who_mixes_steps() -> None:
    mixing = [
        TemporalConv1d(1, 1, size, stride=stride, padding=padding).mixes_steps
        for size, stride, padding in ((1, 1, "causal"), (3, 1, "causal"), (3, 1, "same"), (1, 2, "same"))
    ]
    assert mixing == [False, True, True, True]
    assert Dense(2, 2).mixes_steps is False and AxonalDelay(2, 3).mixes_steps is True


def test_looking_ahead_takes_no_state() -> None:
    x = torch.rand(9, 2, 3)
    for size in (3, 4):
        layer = TemporalConv1d(3, 2, size, padding="same")
        _, state = layer(x)
        with pytest.raises(ShapeError, match=r"looks ahead .*padding='causal'"):
            layer(x, state)
        with pytest.raises(ShapeError, match=r"layer 0: TemporalConv1d looks ahead"):
            network = Sequential(layer)
            network(x, network(x)[1])
    layer = TemporalConv1d(3, 2, 1, padding="same")  # a single step looks nowhere
    assert layer(x, layer(x)[1])[0].shape == (9, 2, 2)


@pytest.mark.parametrize(
    "given, said",
    [
        (lambda x: x[:, 0], r"batch axis with x.unsqueeze\(1\)"),
        (lambda x: x.unsqueeze(-1), r"take the axis of length 1 away"),
        (lambda x: x.flatten(2).repeat(1, 1, 2).squeeze(-1), r"x.movedim, or change c_in"),
        (lambda x: x.numpy(), r"torch.from_numpy"),
        (lambda x: (x, ()), r"spiketide.Sequential"),
        (lambda x: x.double(), r"expected input of torch.float32, as its weights are, got torch.float64"),
    ],
)
def test_what_does_not_fit_is_told_how_to(given: Any, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        TemporalConv1d(3, 2, 2)(given(torch.rand(9, 2, 3)))


def test_flat_features_are_told_how_to_unfold() -> None:
    with pytest.raises(ShapeError, match=r"x.unflatten\(2, \(3, -1\)\) \(of a front end: flatten=False\)"):
        TemporalConv2d(3, 2, 2)(torch.rand(9, 2, 120))


def test_a_recurrence_refuses_a_kernel_of_another_size() -> None:
    with pytest.raises(ShapeError, match=r"Recurrent expected a synapse that gives \(8,\) .*got \(7,\)"):
        Recurrent(LIF(8), TemporalConv1d(8, 7, 3))(torch.rand(5, 2, 8))
