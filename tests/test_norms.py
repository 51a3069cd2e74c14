"""Batch norm over valid steps and dropout with a mask fixed in time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.norms import BatchNorm, Dropout


def sequence(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def twin(layer: BatchNorm, cls: type[nn.Module]) -> nn.Module:
    reference = cls(layer.shape[0], momentum=layer.momentum, eps=layer.eps)
    with torch.no_grad():
        reference.weight.copy_(layer.weight.uniform_(0.5, 1.5))
        reference.bias.copy_(layer.bias.uniform_(-1, 1))
    return reference


@pytest.mark.parametrize(
    ("shape", "cls"), [((3,), nn.BatchNorm1d), ((3, 5), nn.BatchNorm1d), ((3, 4, 2), nn.BatchNorm2d)]
)
def test_equals_torch_without_a_mask(shape: tuple[int, ...], cls: type[nn.Module]) -> None:
    layer = BatchNorm(shape, momentum=0.3)
    reference = twin(layer, cls)
    for step in range(3):
        x = sequence(6, 4, *shape, seed=step)
        y, state = layer(x)
        assert state == ()
        torch.testing.assert_close(y.flatten(0, 1), reference(x.flatten(0, 1)))
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)
    layer.eval()
    reference.eval()
    torch.testing.assert_close(layer(x)[0].flatten(0, 1), reference(x.flatten(0, 1)))


def test_statistics_over_time_and_batch_by_hand() -> None:
    x = torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]])  # mean 3, biased var 5, unbiased 20/3
    layer = BatchNorm(1, momentum=0.5, eps=1e-12, affine=False)
    y, _ = layer(x)
    torch.testing.assert_close(y, (x - 3) / 5**0.5)
    assert layer.running_mean.item() == pytest.approx(1.5)
    assert layer.running_var.item() == pytest.approx(0.5 + 0.5 * 20 / 3)
    assert layer.weight is None and layer.bias is None


@pytest.mark.parametrize("training", [True, False])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_padding_changes_nothing(training: bool, data: st.DataObject) -> None:
    steps, samples = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    lengths = torch.tensor([data.draw(st.integers(0, steps)) for _ in range(samples)])
    if int(lengths.sum()) < 2:
        return
    valid = torch.arange(steps).unsqueeze(1) < lengths
    x = sequence(steps, samples, 3)
    poisoned = x.masked_fill(~valid.unsqueeze(-1), float("nan"))
    layer = BatchNorm(3).train(training)
    layer.running_mean += 0.5  # so that zeros do not come out as zeros
    reference = twin(layer, nn.BatchNorm1d).train(training)
    reference.load_state_dict(layer.state_dict(), strict=False)
    y, _ = layer(poisoned.requires_grad_(), lengths=lengths)
    torch.testing.assert_close(y[valid], reference(x[valid]))
    assert bool((y[~valid] == 0).all())
    torch.testing.assert_close(layer.running_mean, reference.running_mean)
    torch.testing.assert_close(layer.running_var, reference.running_var)
    y.square().sum().backward()
    assert bool(poisoned.grad.isfinite().all()) and bool((poisoned.grad[~valid] == 0).all())
    assert bool(layer.weight.grad.isfinite().all())


def test_gradient_with_lengths() -> None:
    layer = BatchNorm((2, 3)).double()
    lengths = torch.tensor([4, 2])
    weights = sequence(4, 2, 2, 3, seed=7).double()
    x = sequence(4, 2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (layer(x, lengths=lengths)[0] * weights).sum(), (x,))


def test_eval_keeps_the_laws() -> None:
    layer = BatchNorm(3)
    for seed in range(4):
        layer(sequence(5, 4, 3, seed=seed))
    layer.eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    x = sequence(6, 4, 3, seed=9)
    whole, _ = layer(x)
    first, state = layer(x[:2])
    rest, _ = layer(x[2:], state)
    # torch rounds the last values of a row differently with its vector width: one unit in the last place.
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x[:, 1:2])[0], whole[:, 1:2], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert not torch.allclose(whole, x)


def test_single_value_is_refused_in_training_only() -> None:
    layer = BatchNorm(3)
    with pytest.raises(ShapeError, match=r"at least 2 valid values.*got 1"):
        layer(sequence(1, 1, 3))
    with pytest.raises(ShapeError, match="got 1"):
        layer(sequence(4, 2, 3), lengths=torch.tensor([1, 0]))
    with pytest.raises(ShapeError, match="got 0"):
        layer(sequence(4, 2, 3), lengths=torch.tensor([0, 0]))
    assert torch.equal(layer.running_mean, torch.zeros(3))
    y, _ = layer.eval()(sequence(1, 1, 3))
    torch.testing.assert_close(y, sequence(1, 1, 3) / (1 + 1e-5) ** 0.5)
    y, _ = BatchNorm((3, 2))(sequence(1, 1, 3, 2))  # two values of space are enough
    torch.testing.assert_close(y.sum(-1), torch.zeros(1, 1, 3), atol=1e-5, rtol=0)


def test_every_exemption_is_for_training_only() -> None:
    assert set(BatchNorm.exempt) == {"streaming", "causality", "batch_independence", "purity"}
    assert all(
        reason.startswith("training mode only")
        for cls in (BatchNorm, Dropout)
        for reason in cls.exempt.values()
    )


@pytest.mark.parametrize(
    ("n", "arguments", "message"),
    [
        (0, {}, "positive sizes"),
        ((), {}, "positive sizes"),
        ((3, -1), {}, "positive sizes"),
        (3, {"momentum": 1.5}, "momentum"),
        (3, {"eps": 0.0}, "eps"),
        (3, {"eps": float("inf")}, "eps"),
    ],
)
def test_batch_norm_refuses_parameters(n: int, arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BatchNorm(n, **arguments)


def test_refuses_input() -> None:
    for layer in (BatchNorm(3), Dropout(0.5)):
        with pytest.raises(ShapeError, match="floating"):
            layer(torch.zeros(2, 2, 3, dtype=torch.int64))
        with pytest.raises(ShapeError, match="lengths"):
            layer(torch.zeros(2, 2, 3), lengths=torch.tensor([1]))
        with pytest.raises(ShapeError, match="tensor"):
            layer([1.0])
    with pytest.raises(ShapeError, match="features a step"):
        BatchNorm(3)(torch.zeros(2, 2, 4))
    with pytest.raises(ShapeError, match="state"):
        BatchNorm(3)(torch.zeros(2, 2, 3), (torch.zeros(2),))


def test_dropout_mask_is_fixed_in_time_and_scaled() -> None:
    torch.manual_seed(0)
    y, (mask,) = Dropout(0.25)(torch.ones(7, 40, 50))
    assert torch.equal(y, y[:1].expand_as(y)) and torch.equal(mask, y[0])
    assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(mask[0], mask[1])  # each sample has its own


def test_dropout_mask_streams() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.5), sequence(6, 3, 4, 2)
    torch.manual_seed(1)
    whole, _ = layer(x)
    torch.manual_seed(1)
    first, state = layer(x[:2])
    second, state = layer(x[2:3], state)
    third, _ = layer(x[3:], state)
    assert torch.equal(torch.cat([first, second, third]), whole)
    one, _ = layer(x[:, :1], (state[0][:1],))
    assert torch.equal(one, whole[:, :1])
    assert not torch.equal(layer(x)[0], whole)  # a new sequence draws a new mask


@pytest.mark.parametrize("padded", [False, True])
def test_what_is_not_finite_is_refused_and_leaves_the_statistics(padded: bool) -> None:
    layer = BatchNorm(3)
    x, lengths = sequence(6, 4, 3), torch.tensor([6, 5, 3, 6]) if padded else None
    layer(x, lengths=lengths)
    before = [buffer.clone() for buffer in layer.buffers()]
    for bad in (float("nan"), float("inf")):
        x[4, 1, 2] = bad
        with pytest.raises(NonFiniteError, match="first at step 4 of sample 1"):
            layer(x, lengths=lengths)
        assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))
    with pytest.raises(NonFiniteError, match="overflowed"):
        layer(sequence(6, 4, 3) * 1e30)
    layer.running_mean[0] = float("nan")
    with pytest.raises(NonFiniteError, match="the running statistics are NaN"):
        layer(sequence(6, 4, 3))


def test_dropout_gradient_is_the_mask() -> None:
    x = sequence(3, 2, 5).requires_grad_()
    y, (mask,) = Dropout(0.5)(x, lengths=torch.tensor([3, 1]))
    y.sum().backward()
    expected = mask.expand(3, 2, 5).clone()
    expected[1:, 1] = 0
    assert torch.equal(x.grad, expected)
    assert bool((y[1:, 1] == 0).all())


@pytest.mark.parametrize("layer", [Dropout(0.9).eval(), Dropout(0.0)])
def test_dropout_identity(layer: Dropout) -> None:
    x = sequence(3, 2, 5)
    y, state = layer(x)
    assert torch.equal(y, x) and state == ()
    padded, _ = layer(x.masked_fill(torch.tensor([[False], [True], [True]]).unsqueeze(-1), float("nan")),
                      lengths=torch.tensor([1, 1]))  # fmt: skip
    assert torch.equal(padded[0], x[0]) and bool((padded[1:] == 0).all())


def test_dropout_refuses() -> None:
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ParameterError, match=r"\[0, 1\)"):
            Dropout(p)
    layer = Dropout(0.5)
    _, state = layer(torch.ones(1, 4, 3))
    with pytest.raises(ShapeError, match="batch"):
        layer(torch.ones(1, 2, 3), state)
    with pytest.raises(ShapeError, match="state"):
        layer.eval()(torch.ones(1, 4, 3), state)
