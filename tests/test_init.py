"""Initialisers: distributions, groups, reproducibility."""

from __future__ import annotations

import math

import pytest
import torch

from spiketide.errors import ParameterError, ShapeError
from spiketide.init import Constant, HalfNormal, Init, LogNormal, MultiGroup, Normal, Uniform, as_init

ALL = [
    Constant(3.0),
    Normal(20.0, 5.0),
    Normal(20.0, 5.0, minimum=1.0),
    LogNormal(20.0, 0.5),
    HalfNormal(12.0),
    Uniform(5.0, 25.0),
    MultiGroup([Normal(20.0, 1.0), Normal(20.0, 5.0)]),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_class_is_covered() -> None:
    assert {type(init) for init in ALL} == set(Init.__subclasses__())


@pytest.mark.parametrize("init", ALL, ids=repr)
def test_shape_dtype_and_generator(init: Init) -> None:
    x = init((4, 3, 2), generator=generator())
    assert x.shape == (4, 3, 2) and x.dtype == torch.float32 and not x.requires_grad
    assert torch.equal(x, init((4, 3, 2), generator=generator()))
    before = torch.get_rng_state()
    init((4,), generator=generator())
    assert torch.equal(torch.get_rng_state(), before)  # the global one is not touched
    if not isinstance(init, Constant):
        assert not torch.equal(x, init((4, 3, 2), generator=generator(1)))
        torch.manual_seed(0)
        first = init((4,))
        torch.manual_seed(0)
        assert torch.equal(first, init((4,)))


def test_moments() -> None:
    n = (200_000,)
    assert torch.equal(Constant(3.0)((2,)), torch.tensor([3.0, 3.0]))
    x = Normal(20.0, 5.0)(n, generator=generator())
    assert x.mean().item() == pytest.approx(20, abs=0.05) and x.std().item() == pytest.approx(5, abs=0.05)
    x = Uniform(5.0, 25.0)(n, generator=generator())
    assert 5.0 <= x.min().item() < 5.01 and 24.99 < x.max().item() <= 25.0
    assert x.mean().item() == pytest.approx(15, abs=0.05)
    x = LogNormal(20.0, 0.5)(n, generator=generator())
    assert x.median().item() == pytest.approx(20, rel=0.01)
    assert x.log().std().item() == pytest.approx(0.5, abs=0.01)


def test_truncated_normal_is_the_conditional_one() -> None:
    mean, std, minimum = 20.0, 5.0, 15.0
    x = Normal(mean, std, minimum=minimum)((200_000,), generator=generator())
    cut = (minimum - mean) / std
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    above = 0.5 * math.erfc(cut / math.sqrt(2))
    assert x.min().item() >= minimum
    assert (x == minimum).float().mean().item() < 1e-4  # no pile at the cut
    assert x.mean().item() == pytest.approx(mean + std * density / above, abs=0.03)
    free = Normal(mean, std, minimum=-1e4)((200_000,), generator=generator())
    assert bool(free.isfinite().all()) and free.std().item() == pytest.approx(5, abs=0.05)
    assert torch.equal(Normal(2.0, 0.0, minimum=1.0)((3,)), torch.full((3,), 2.0))


def test_groups_and_remainder() -> None:
    groups = MultiGroup([Constant(1.0), Constant(2.0), Constant(3.0)])
    assert groups((7,)).tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert groups((3, 2)).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert MultiGroup([Constant(1.0)])((2,)).tolist() == [1, 1]
    with pytest.raises(ShapeError, match="at least 3 neurons"):
        groups((2,))
    with pytest.raises(ShapeError, match="at least 3"):
        groups(())


def test_as_init() -> None:
    assert as_init(2)((1,)).item() == 2.0
    init = Normal(1.0, 1.0)
    assert as_init(init) is init
    assert repr(Normal(1.0, 2.0)) == "Normal(mean=1.0, std=2.0, minimum=None)"


@pytest.mark.parametrize(
    "build",
    [
        lambda: Constant(float("nan")),
        lambda: Normal(float("inf"), 1.0),
        lambda: Normal(0.0, -1.0),
        lambda: Normal(1.0, 1.0, minimum=1.0),
        lambda: Normal(1.0, 1.0, minimum=float("nan")),
        lambda: HalfNormal(-1.0),
        lambda: HalfNormal(float("inf")),
        lambda: LogNormal(0.0, 1.0),
        lambda: LogNormal(1.0, -1.0),
        lambda: Uniform(2.0, 1.0),
        lambda: Uniform(0.0, float("inf")),
        lambda: MultiGroup([]),
        lambda: MultiGroup([20.0]),
    ],
)
def test_refuses(build) -> None:
    with pytest.raises(ParameterError, match="expected"):
        build()


def test_in_a_recipe() -> None:
    """jsonargparse builds them from class_path and init_args, also nested."""
    jsonargparse = pytest.importorskip("jsonargparse")

    class Model:
        def __init__(self, tau: float | Init = 1.0) -> None:
            self.tau = tau

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Model, "model")
    config = {
        "class_path": "spiketide.init.MultiGroup",
        "init_args": {
            "groups": [
                {"class_path": "spiketide.init.Normal", "init_args": {"mean": 20.0, "std": 0.0}},
                {"class_path": "spiketide.init.Constant", "init_args": {"value": 200.0}},
            ]
        },
    }
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the old name until 4.5x
    model = build(parser.parse_object({"model": {"tau": config}})).model
    assert model.tau((3,)).tolist() == [20.0, 200.0, 200.0]
