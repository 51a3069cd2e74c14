"""Direct current."""

from __future__ import annotations

import pytest
import torch

from spiketide.encoders import Direct
from spiketide.errors import ParameterError


def test_the_value_at_every_step_with_its_gradient() -> None:
    x = torch.rand(2, 3, 4, requires_grad=True)
    y = Direct(5, gain=2.0)(x)
    assert y.shape == (5, 2, 3, 4)
    for t in range(5):
        assert torch.equal(y[t], 2 * x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3, 4), 10.0))


def test_takes_no_memory() -> None:
    x = torch.rand(2, 3)
    assert Direct(1000)(x).untyped_storage().nbytes() == x.untyped_storage().nbytes()


def test_refuses() -> None:
    with pytest.raises(ParameterError, match="gain"):
        Direct(3, gain=float("nan"))
