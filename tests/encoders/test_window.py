"""Windows of pixels: against a plain loop, and the orders of the pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketide.encoders import Window
from spiketide.errors import DataError, ParameterError, ShapeError


def by_loop(x: torch.Tensor, width: int, stride: int) -> torch.Tensor:
    """The definition, number by number."""
    images = x.reshape(len(x), -1).tolist()
    steps = range(0, len(images[0]), stride)
    rows = [[[(i[s + k] if s + k < len(i) else 0.0) for k in range(width)] for i in images] for s in steps]
    return torch.tensor(rows, dtype=x.dtype)


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_is_its_definition(batch: int, shape: list[int], width: int, stride: int) -> None:
    x = torch.rand(batch, *shape, dtype=torch.float64)
    y = Window(width, stride)(x)
    assert torch.equal(y, by_loop(x, width, stride))
    assert y.is_contiguous() and y.dtype == x.dtype


def test_mnist_sizes() -> None:
    x = torch.rand(5, 1, 28, 28)
    for width in (1, 4, 8):
        y = Window(width)(x)
        assert y.shape == (784, 5, width) and y.is_contiguous()
    assert torch.equal(Window(1)(x)[..., 0], x.flatten(1).T)
    rows = Window(28, 28)(x)  # an image row at a step
    assert torch.equal(rows, x[:, 0].transpose(0, 1))


def test_permutation_is_one_and_the_same_for_all() -> None:
    x = torch.rand(4, 1, 28, 28)
    order = Window(1, permutation_seed=7).permutation(784)
    assert order is not None and sorted(order.tolist()) == list(range(784))
    assert torch.equal(Window(1, permutation_seed=7)(x)[..., 0], x.flatten(1)[:, order].T)
    wide = Window(4, permutation_seed=7)(x)
    assert torch.equal(wide, by_loop(x.flatten(1)[:, order], 4, 1))
    other = Window(1, permutation_seed=8).permutation(784)
    assert not torch.equal(order, other)
    assert Window(1).permutation(784) is None
    order.zero_()  # the caller's copy: the encoder keeps its own
    assert torch.equal(Window(4, permutation_seed=7)(x), wide)


def test_permutation_of_the_data_set_and_of_the_encoder_agree(tmp_path) -> None:
    from spiketide.data import MNIST

    there = MNIST(root=tmp_path, as_sequence="pixels", permutation_seed=3).permutation
    assert torch.equal(there, Window(1, permutation_seed=3).permutation(784))


def test_the_global_random_state_stays() -> None:
    import numpy as np

    torch.manual_seed(1), np.random.seed(1)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    Window(2, permutation_seed=11)(torch.full((1, 33), 0.5))
    assert (torch.rand(1), np.random.rand()) == before


def test_binarise() -> None:
    x = torch.tensor([[0.0, 0.1, 0.11, 1.0]], dtype=torch.float64)
    assert Window(2, binarise=0.1)(x)[:, 0].tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]
    assert Window(1, binarise=0.0)(x).flatten().tolist() == [0, 1, 1, 1]


def test_gradient() -> None:
    """A pixel gets the gradient of every window that shows it."""
    x = torch.full((1, 2, 3), 0.5, requires_grad=True)
    Window(4)(x).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [1, 2, 3, 4, 4, 4]
    assert not Window(4, binarise=0.2)(x).requires_grad


def test_has_no_steps_of_its_own() -> None:
    encoder = Window(4, 2, permutation_seed=1)
    assert not hasattr(encoder, "steps") and encoder.state_dict() == {}
    assert "width=4" in repr(encoder) and "stride=2" in repr(encoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width"),
        ({"width": 2.0}, "width"),
        ({"width": True}, "width"),
        ({"width": 1, "stride": 0}, "stride"),
        ({"width": 1, "stride": 1.5}, "stride"),
        ({"width": 1, "permutation_seed": -1}, "permutation_seed"),
        ({"width": 1, "permutation_seed": 2**32}, "permutation_seed"),
        ({"width": 1, "binarise": 1.0}, "binarise"),
        ({"width": 1, "binarise": float("nan")}, "binarise"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Window(**arguments)


def test_refuses_values() -> None:
    with pytest.raises(ShapeError, match=r"uint8.*x\.float\(\) / 255"):
        Window(1)(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"\(B, \*N\)"):
        Window(1)(torch.zeros(3))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        Window(1)(torch.full((1, 3), 2.0))
