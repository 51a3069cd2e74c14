"""What all encoders share."""

from __future__ import annotations

import pytest
import torch

from spiketide import encoders
from spiketide.encoders import Direct, Encoder, Latency, Poisson, Population, Ternary, Window
from spiketide.errors import DataError, ParameterError, ShapeError

ALL = [
    Direct(6),
    Latency(6),
    Latency(6, tau=2.0, threshold=0.2),
    Poisson(6, max_rate=500.0),
    Population(5, steps=6),
    Population(5, steps=6, threshold=0.5),
    Population(5, steps=6, learn_threshold=True),
    Window(3),
]
"""Those of static data in [0, 1]; Ternary, for sequences of any values, has tests of its own."""
every = pytest.mark.parametrize("encoder", ALL, ids=lambda e: type(e).__name__)


def test_every_class_is_covered() -> None:
    covered = {Ternary, *map(type, ALL)}
    # others of the package, as spiketide.timing.FirstSpikes, wrap a network and have tests of their own
    here = {cls for cls in Encoder.__subclasses__() if cls.__module__.startswith("spiketide.encoders")}
    assert covered == here
    assert {getattr(encoders, cls.__name__) for cls in here} == covered


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_comes_first_and_the_type_stays(encoder: Encoder, dtype: torch.dtype) -> None:
    x = torch.rand(3, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = encoder(x)
    assert y.shape == (6, 3, {Population: 30, Window: 3}.get(type(encoder), 6))
    assert y.dtype == dtype and bool((y != 0).any())


@pytest.mark.parametrize(  # the draws of Poisson depend on the place in the batch, as its docstring says
    "encoder", [e for e in ALL if not isinstance(e, Poisson)], ids=lambda e: type(e).__name__
)
def test_a_sample_does_not_see_its_neighbours(encoder: Encoder) -> None:
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(x[1:2]), encoder(x)[:, 1:2])


@every
def test_state_dict_holds_what_is_learnt(encoder: Encoder) -> None:
    learnt = ["threshold.raw"] if getattr(encoder, "surrogate", None) else []
    assert list(encoder.state_dict()) == learnt
    assert "steps=6" in repr(encoder) or isinstance(encoder, Window)


@every
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.uint8), ShapeError, r"uint8.*x\.float\(\) / 255"),
        (torch.zeros(2, 3, dtype=torch.int64), ShapeError, "int64"),
        (torch.zeros(2, 3, dtype=torch.bool), ShapeError, "bool"),
        (torch.tensor([[0.0, 1.5]]), DataError, r"in \[0, 1\], got 0 to 1.5"),
        (torch.tensor([[-0.25, 1.0]]), DataError, "got -0.25 to 1"),
        (torch.tensor([[0.0, 255.0]]), DataError, "got 0 to 255"),
        (torch.tensor([[0.5, float("nan")]]), DataError, "1 NaN or Inf among 2"),
        (torch.tensor([[float("inf"), float("nan")]]), DataError, "2 NaN or Inf"),
        (torch.tensor([[0.5, float("inf")]]), DataError, "1 NaN or Inf"),
        (torch.zeros(0, 3), DataError, "empty"),
        (torch.zeros(3), ShapeError, r"\(B, "),
        ([[0.5]], ShapeError, "list"),
    ],
)
def test_refuses_values(encoder: Encoder, x, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder(x)


@pytest.mark.parametrize("cls", [Direct, Latency, Poisson, lambda steps: Population(4, steps=steps)])
@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_refuses_steps(cls, steps) -> None:
    with pytest.raises(ParameterError, match="steps"):
        cls(steps)
