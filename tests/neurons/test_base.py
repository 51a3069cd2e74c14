"""What all neurons share: constants that cannot leave their range, errors that help, copies that stay themselves."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_fires, assert_same, interpreted
from torch import Tensor, nn

from spiketide import (
    ALIF,
    IF,
    LIF,
    AdLIF,
    BalancedResonateFire,
    CubaLIF,
    Dense,
    LeakyIntegrator,
    Neuron,
    Recurrent,
    SEAdLIF,
    StepNeuron,
    spike,
)
from spiketide.errors import EngineError, NonFiniteError, ParameterError, ShapeError
from spiketide.neurons.base import Constant, TimeConstant, traced_by
from spiketide.surrogate import ATan, FastSigmoid, MultiGaussian

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EVERY: dict[str, tuple[Callable[..., Neuron], tuple[str, ...]]] = {
    "IF": (IF, ("threshold",)),
    "LIF": (LIF, ("tau_mem", "threshold")),
    "CubaLIF": (CubaLIF, ("tau_mem", "tau_syn", "threshold")),
    "ALIF": (ALIF, ("tau_mem", "tau_adapt", "threshold", "adaptation")),
    "AdLIF": (AdLIF, ("tau_mem", "tau_adapt", "coupling", "jump", "threshold")),
    "LeakyIntegrator": (LeakyIntegrator, ("tau_mem",)),
    # at the paper's threshold a test's input does not reach it, and a jump that never happens has no gradient
    "SEAdLIF": (
        functools.partial(SEAdLIF, threshold=0.05),
        ("tau_mem", "tau_adapt", "coupling", "jump", "threshold"),
    ),
    "BalancedResonateFire": (BalancedResonateFire, ("omega", "damping", "threshold")),
}


def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


# ---------------------------------------------------------------------------------------------- constants and ranges


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("discretisation", ["exp", "euler"])
@pytest.mark.parametrize("name", EVERY)
def test_no_optimiser_leaves_the_range(name: str, discretisation: str, optimiser: Any, sign: int) -> None:
    cls, learn = EVERY[name]
    options = {} if name in ("IF", "BalancedResonateFire") else {"discretisation": discretisation}
    neuron = cls(3, learn=learn, **options)
    opt = optimiser(neuron.parameters(), lr=10.0)
    names = neuron.dynamics.coefs
    for i in range(200):
        opt.zero_grad()
        loss = sign * sum(c.sum() for c in neuron.coefs())
        with interpreted():
            if i % 20 == 0:  # with a real gradient now and then, also at the ends of the ranges
                y, state = neuron(torch.rand(4, 1, 3) * 2)
                loss = loss + y.sum() + sum(s.sum() for s in state)
            loss.backward()
        for parameter in neuron.parameters():
            assert bool(torch.isfinite(parameter.grad).all()), (
                f"the gradient of a constant is not finite in step {i}"
            )
        opt.step()
        if i > 5 and i % 5:
            continue
        for key, value in zip(names, neuron.coefs(), strict=True):
            assert bool(torch.isfinite(value).all()), f"{key} is {value} after {i + 1} steps"
            if key.startswith("decay"):
                assert bool(((value > 0) & (value < 1)).all()), f"{key} is {value} after {i + 1} steps"
            elif key in ("threshold", "adaptation"):
                assert bool((value > 0).all()), f"{key} is {value} after {i + 1} steps"
            elif key == "coupling":
                assert bool((value.abs() < 1).all()), f"{key} is {value} after {i + 1} steps"


def test_a_constant_at_the_end_of_its_range_comes_back() -> None:
    neuron = LIF(1, tau_mem=20.0, learn=("tau_mem",))
    with torch.no_grad():
        neuron.tau_mem.raw.fill_(100.0)
    top = float(neuron.tau_mem().detach())
    assert 1e6 < top < 1e7
    opt = torch.optim.Adam(neuron.parameters(), lr=1.0)
    for _ in range(95):
        opt.zero_grad()
        (neuron.tau_mem() - 20.0).abs().sum().backward()
        opt.step()
    assert float(neuron.tau_mem().detach()) < top / 1e3


@pytest.mark.parametrize("discretisation", ["exp", "euler"])
def test_a_learnable_constant_begins_where_it_was_told(discretisation: str) -> None:
    for tau in (1.5, 20.0, 3e4):
        for dt in (1.0, 1e-3):
            fixed = TimeConstant("tau", tau * dt, (3,), dt=dt, discretisation=discretisation)
            learnt = TimeConstant("tau", tau * dt, (3,), dt=dt, discretisation=discretisation, learn=True)
            assert learnt.learnable and not fixed.learnable
            assert learnt().tolist() == pytest.approx([tau * dt] * 3, rel=1e-5)
            assert learnt.decay().tolist() == pytest.approx([float(fixed.decay())] * 3, rel=1e-5, abs=1e-6)
    extreme = TimeConstant("tau", 1e-3, (2,), learn=True)  # beyond the range of training, but asked for
    assert extreme().tolist() == pytest.approx([1e-3] * 2, rel=1e-5)
    assert Constant("c", 0.25, (2,), learn=True, low=-1.0, high=1.0)().tolist() == pytest.approx([0.25] * 2)
    assert Constant("c", -3.0, (2,), learn=True)().tolist() == [-3.0, -3.0]


def test_decays() -> None:
    assert float(TimeConstant("tau", 20.0, (1,), dt=2.0).decay()) == pytest.approx(math.exp(-0.1))
    assert float(TimeConstant("tau", 20.0, (1,), dt=2.0, discretisation="euler").decay()) == pytest.approx(
        0.9
    )
    assert float(TimeConstant("tau", 1.0, (1,), discretisation="euler").decay()) == 0.0  # no memory at all
    for dt in (0.1, 0.3, 0.7, 1e-3):
        assert abs(float(LIF(1, tau_mem=dt, dt=dt, discretisation="euler").tau_mem.decay())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_keeps_its_time_constants(dtype: torch.dtype) -> None:
    # exp(-1/200) = 0.995 is 0.996 in bfloat16, which is a time constant of 256: the arithmetic stays float32
    want = [float(c.detach()[0] if c.dim() else c) for c in ALIF(3).coefs()]
    for learn in ((), EVERY["ALIF"][1]):
        neuron = ALIF(3, learn=learn).to(dtype)
        got = [float(c.detach()[0] if c.dim() else c) for c in neuron.coefs()]
        assert all(c.dtype == torch.float32 for c in neuron.coefs())
        assert got[:2] == pytest.approx(want[:2], rel=2e-3) and abs(got[1] - want[1]) < 2e-4
        x = torch.rand(30, 2, 3).to(dtype)
        with interpreted():
            y, state = neuron(x)
            assert y.dtype == dtype and all(s.dtype == torch.float32 for s in state)
            if learn:
                y.float().sum().backward()
                assert all(p.grad.dtype == dtype and bool(p.grad.any()) for p in neuron.parameters())


def test_roles_for_the_parameter_groups() -> None:
    neuron = AdLIF(3, learn=EVERY["AdLIF"][1])
    roles = {name: parameter.role for name, parameter in neuron.named_parameters()}
    assert roles == {
        "tau_mem.raw": "time_constants",
        "tau_adapt.raw": "time_constants",
        "coupling.raw": "weights",
        "jump.raw": "weights",
        "threshold.raw": "thresholds",
    }
    assert {n: p.role for n, p in ALIF(3, learn=EVERY["ALIF"][1]).named_parameters()}[
        "adaptation.raw"
    ] == "thresholds"


def test_one_constant_per_neuron_per_channel_or_drawn() -> None:
    assert [p.shape for p in LIF(5, learn=("tau_mem",)).parameters()] == [(5,)]
    maps = LIF((3, 4, 2), learn=("tau_mem", "threshold"))
    assert [p.shape for p in maps.parameters()] == [(3, 1, 1), (3, 1, 1)]
    drawn: list[tuple[int, ...]] = []

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn.append(shape)
        return 10.0 + torch.arange(math.prod(shape)).view(shape)

    neuron = LIF(4, tau_mem=draw)
    assert (
        drawn == [(4,)]
        and neuron.tau_mem().tolist() == [10.0, 11.0, 12.0, 13.0]
        and not list(neuron.parameters())
    )
    LIF((4, 2), tau_mem=draw, learn=("tau_mem",))
    assert drawn[-1] == (4, 1)
    given = torch.tensor([5.0, 10.0])
    own = LIF(2, tau_mem=given, learn=("tau_mem",))
    given.fill_(-1.0)
    assert own.tau_mem().tolist() == pytest.approx([5.0, 10.0])
    x = torch.rand(20, 2, 2)
    with torch.no_grad():
        both, _ = own(x)
        for k, tau in enumerate((5.0, 10.0)):
            assert_same(
                LIF(1, tau_mem=torch.tensor([tau]), learn=("tau_mem",))(x[..., k : k + 1])[0],
                both[..., k : k + 1],
            )


def test_feature_maps_are_dense_layers_of_another_shape() -> None:
    flat, maps = LIF(24, tau_mem=6.0), LIF((2, 3, 4), tau_mem=6.0)
    x = torch.rand(20, 2, 24)
    y, (v,) = flat(x)
    z, (w,) = maps(x.view(20, 2, 2, 3, 4))
    assert_fires(y)
    assert z.shape == (20, 2, 2, 3, 4) and w.shape == (2, 2, 3, 4)
    assert_same(z.flatten(2), y)
    assert_same(w.flatten(1), v)
    assert flat.shape == (24,) and maps.shape == (2, 3, 4) and LIF([2, 3]).shape == (2, 3)
    assert LIF(np.int64(3)).shape == (3,) and LIF(torch.Size([2, 3])).shape == (2, 3)


def test_every_learnable_constant_gets_a_gradient_and_the_others_are_fixed() -> None:
    for name, (cls, learn) in EVERY.items():
        fixed = cls(3, learn=())
        assert not list(fixed.parameters()) and {*dict(fixed.named_buffers())} == {
            f"{k}.fixed" for k in learn
        }
        for one in learn:
            neuron = cls(3, learn=one)  # a bare string is one name
            (parameter,) = neuron.parameters()
            with interpreted():
                y, state = neuron(torch.rand(12, 2, 3))
                (y.sum() + sum(s.sum() for s in state)).backward()
            assert bool((parameter.grad != 0).all()), f"{name}: {one} has no gradient"


# ------------------------------------------------------------------------------------------------------- bad constants


def refused(build: Callable[[], Any]) -> str:
    with pytest.raises(ParameterError) as error:
        build()
    return str(error.value)


def test_bad_constants_say_what_was_expected() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0, 1.0])):
        assert "tau_mem expected finite values > 0, got" in refused(lambda b=bad: LIF(3, tau_mem=b))
        assert "tau_mem expected" in refused(lambda b=bad: LIF(3, tau_mem=b, learn=("tau_mem",)))
        assert "threshold expected finite values > 0" in refused(lambda b=bad: LIF(3, threshold=b))
        assert "tau_syn expected" in refused(lambda b=bad: CubaLIF(3, tau_syn=b))
        assert "tau_adapt expected" in refused(lambda b=bad: ALIF(3, tau_adapt=b))
    assert refused(lambda: LIF(3, tau_mem=-2.5)).endswith("got -2.5.")
    assert "got (3,) in [0, 1]" in refused(lambda: LIF(3, tau_mem=torch.tensor([1.0, 0.0, 1.0])))
    assert "coupling expected finite values > -1 and < 1, got 1." in refused(lambda: AdLIF(3, coupling=1.0))
    assert "coupling expected" in refused(lambda: AdLIF(3, coupling=-1.0))
    assert "jump expected finite values, got nan." in refused(lambda: AdLIF(3, jump=math.nan))
    assert "adaptation expected" in refused(lambda: ALIF(3, adaptation=-0.1))
    assert "adaptation expected" in refused(lambda: ALIF(3, adaptation=0.0, learn=("adaptation",)))
    assert float(ALIF(3, adaptation=0.0).adaptation()) == 0.0  # a LIF
    # euler: below dt the membrane would change its sign at every step
    assert "tau_mem expected finite values > 1, got 0.5." in refused(
        lambda: LIF(3, tau_mem=0.5, discretisation="euler")
    )
    assert "> 2, got 1." in refused(
        lambda: LIF(3, tau_mem=1.0, dt=2.0, discretisation="euler", learn=("tau_mem",))
    )
    LIF(3, tau_mem=0.5)


def test_shapes_and_kinds_of_constants() -> None:
    assert "broadcasts to (3,), got (2,)" in refused(lambda: LIF(3, tau_mem=torch.ones(2)))
    assert "broadcasts to (2, 3), got (4, 2, 3)" in refused(lambda: LIF((2, 3), tau_mem=torch.ones(4, 2, 3)))
    assert "an initialiser that returns a tensor, got float" in refused(
        lambda: LIF(3, tau_mem=lambda shape: 20.0)
    )
    assert "broadcasts to (3,), got (5,)" in refused(lambda: LIF(3, tau_mem=lambda shape: torch.ones(5)))
    for bad in ("20", ["a", "b", "c"], None):
        assert "tau_mem expected a number, numbers one per neuron or an initialiser" in refused(
            lambda b=bad: LIF(3, tau_mem=b)
        )
    for bad in (0, -3, 2.5, True, (), (3, 0), (3, -1), (2.0, 3), "12", None):
        assert "expected positive sizes, n=256 or n=(32, 14, 14), got" in refused(lambda b=bad: LIF(b))
    for bad in (0.0, -1.0, math.nan, math.inf, "1", None):
        for cls in (IF, LIF, LeakyIntegrator):
            assert "dt expected a positive time per step" in refused(lambda b=bad, c=cls: c(3, dt=b))


def test_unknown_names_give_the_nearest() -> None:
    assert refused(lambda: LIF(3, reset="sotf")).startswith(
        "unknown reset 'sotf'; did you mean 'soft'? Known: hard, hard_detached, none"
    )
    assert "Known: delayed, hard" in refused(lambda: ALIF(3, reset="delay"))
    assert "did you mean 'euler'? Known: euler, exp" in refused(lambda: LIF(3, discretisation="eular"))
    assert refused(lambda: ALIF(3, learn=("tau_adp",))) == (
        "unknown learnable constant of ALIF 'tau_adp'; did you mean 'tau_adapt'? Known: adaptation, tau_adapt, tau_mem, threshold"
    )
    assert "learnable constant of IF 'tau_mem'" in refused(lambda: IF(3, learn=("tau_mem",)))
    with pytest.raises(EngineError, match="unknown engine 'cuda'.*Known: cpu, gpu, reference"):
        LIF(3, engine="cuda")
    with pytest.raises(TypeError, match="tau"):
        LIF(3, tau=20.0)  # type: ignore[call-arg]
    for bad in (ATan, "atan", 2.0):
        assert "expected a surrogate such as FastSigmoid(10.0)" in refused(lambda b=bad: LIF(3, surrogate=b))


# ------------------------------------------------------------------------------------------------------- bad input


def test_wrong_inputs_say_what_to_do() -> None:
    layer = LIF(7)

    def message(x: Any, *arguments: Any, **options: Any) -> str:
        with pytest.raises(ShapeError) as error:
            layer(x, *arguments, **options)
        return str(error.value)

    assert (
        message(torch.rand(5, 7))
        == "LIF expected (T, B, 7), got (5, 7) with 2 axes. For a single step add the time axis: x.unsqueeze(0)."
    )
    assert message(torch.rand(7)) == "LIF expected (T, B, 7), got (7,) with 1 axes."
    assert "got (5, 2, 1, 7) with 4 axes" in message(torch.rand(5, 2, 1, 7))
    assert "is this batch-first or features-first? spiketide is time-first: x.transpose(0, 1)" in message(
        torch.rand(2, 7, 5)
    )
    assert "spikes are floats here, convert with x.float()" in message(torch.ones(5, 2, 7, dtype=torch.int64))
    assert "got torch.bool" in message(torch.ones(5, 2, 7, dtype=torch.bool))
    assert "expected a tensor (T, B, *N), got ndarray" in message(np.zeros((5, 2, 7)))
    assert "lengths (2,) of integers" in message(torch.rand(5, 2, 7), lengths=torch.tensor([5.0, 3.0]))
    assert "batch-first, transpose it" in message(torch.rand(5, 2, 7), lengths=torch.tensor([5, 5, 5, 5, 5]))
    assert "from 0 to T = 5, got 2 to 6" in message(torch.rand(5, 2, 7), lengths=torch.tensor([2, 6]))


def test_wrong_states_say_what_to_do() -> None:
    x = torch.rand(5, 2, 7)
    cases: list[tuple[Neuron | Recurrent, Any, str]] = [
        (
            LIF(7),
            (torch.zeros(3, 7),),
            r"LIF expected state tensors of shape \(2, 7\), got \(3, 7\): the state is of another batch size",
        ),
        (LIF(7), (torch.zeros(2, 6),), r"got \(2, 6\)"),
        (LIF(7), (torch.zeros(2, 7), torch.zeros(2, 7)), "LIF expected a state of 1 tensors, got 2"),
        (ALIF(7), (torch.zeros(2, 7),), "ALIF expected a state of 3 tensors, got 1"),
        (LIF(7), (), "expected a state of 1 tensors, got 0"),
        (Recurrent(LIF(7), Dense(7, 7)), (torch.zeros(2, 7),), "Recurrent expected a state"),
        (
            Recurrent(LIF(7), Dense(7, 7)),
            ((torch.zeros(3, 7), torch.zeros(3, 7)), ()),
            r"\(2, 7\), got \(3, 7\)",
        ),
        (Recurrent(LIF(7), Dense(7, 7)), ((torch.zeros(2, 7),), ()), "expected a state of 2 tensors, got 1"),
    ]
    for layer, state, message in cases:
        with pytest.raises(ShapeError, match=message):
            layer(x, state)
    _, state = LIF(7)(torch.rand(5, 3, 7))
    with pytest.raises(ShapeError, match="pass None to begin a new batch"):
        LIF(7)(x, state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [n for n in EVERY])
def test_nan_and_infinity_are_found_where_they_are(name: str, value: float) -> None:
    neuron = EVERY[name][0](4)
    for step_, sample in ((0, 0), (3, 1), (9, 2)):
        x = torch.rand(10, 3, 4)
        x[step_, sample, 2] = value
        where = f"{name} expected finite input, got NaN or infinity first at step {step_} of sample {sample}"
        with interpreted(), pytest.raises(NonFiniteError, match=where):
            neuron(x)


def test_nan_in_the_padding_is_nobodys_business_but_before_it_is() -> None:
    x = torch.rand(10, 3, 4)
    x[6:, 1] = math.nan
    lengths = torch.tensor([10, 6, 0])
    x[:, 2] = math.inf
    for layer in (LIF(4), ALIF(4), LIF(4, engine="reference"), Recurrent(LIF(4), Dense(4, 4))):
        with interpreted():
            y, _ = layer(x, lengths=lengths)
            assert bool(torch.isfinite(y).all())
            with pytest.raises(NonFiniteError, match="step 6 of sample 1"):
                layer(x, lengths=torch.tensor([10, 7, 0]))


def test_other_ways_to_nan() -> None:
    x = torch.rand(5, 2, 3)
    with pytest.raises(NonFiniteError, match="LIF was given a state with NaN or infinity: begin with None"):
        LIF(3)(x, (torch.full((2, 3), math.nan),))
    layer = LIF(3, learn=("tau_mem",))
    with torch.no_grad():
        layer.tau_mem.raw.fill_(math.nan)
    with pytest.raises(
        NonFiniteError, match="LIF: the constant decay is NaN or infinite; its training diverged"
    ):
        layer(x)
    with pytest.raises(NonFiniteError, match="the state overflowed on finite input"):
        LeakyIntegrator(3, scale_input=False)(x + 3e38)


# ----------------------------------------------------------------------------------------------------------- copies


def every_neuron() -> list[Neuron]:
    return [cls(4, learn=learn) for cls, learn in EVERY.values()]


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
def test_copies_are_the_same_and_their_own(how: Callable[[Neuron], Neuron]) -> None:
    x = torch.rand(12, 2, 4)
    for neuron in every_neuron():
        other = how(neuron)
        with torch.no_grad():
            assert_same(other(x)[0], neuron(x)[0])
            for parameter in other.parameters():
                parameter.add_(1.0)
            for a, b in zip(neuron.coefs(), other.coefs(), strict=True):
                assert not torch.equal(a, b), "a copy shares its constants"
        constants = {n: m.role for n, m in neuron.named_modules() if isinstance(m, Constant)}
        assert {n: m.role for n, m in other.named_modules() if isinstance(m, Constant)} == constants
        assert other.surrogate == neuron.surrogate and repr(type(other)) == repr(type(neuron))


def test_state_dict_round_trip() -> None:
    x = torch.rand(12, 2, 4)
    for neuron in every_neuron():
        with torch.no_grad():
            for parameter in neuron.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        other = type(neuron)(4, learn=EVERY[type(neuron).__name__][1])
        assert any(not torch.equal(a, b) for a, b in zip(neuron.coefs(), other.coefs(), strict=True))
        missing = other.load_state_dict(neuron.state_dict())
        assert not missing.missing_keys and not missing.unexpected_keys
        with torch.no_grad():
            assert_same(other(x)[0], neuron(x)[0])
    # fixed constants travel too: another tau would be another network
    saved = LIF(4, tau_mem=5.0).state_dict()
    other = LIF(4, tau_mem=50.0)
    other.load_state_dict(saved)
    assert float(other.tau_mem()) == 5.0


def test_it_prints_what_it_is() -> None:
    text = repr(ALIF(7, learn=("tau_mem",)))
    assert (
        "tau_mem=(7,) in [20, 20], learnable" in text and "adaptation=1.8" in text and "MultiGaussian" in text
    )
    assert "(2, 3)" in repr(LIF((2, 3))) and "ATan(slope=2.0)" in repr(LIF(3))


# -------------------------------------------------------------------------------------------------- neurons of users


class Quadratic(Neuron):
    """A neuron as a user writes it."""

    states = ("v",)

    @staticmethod
    def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v * (1 + 0.1 * v) + x
        s = spike(v - threshold)
        return s, v * (1 - s)

    def __init__(self, n: Any, **options: Any) -> None:
        super().__init__(n, **options)
        self.tau = TimeConstant("tau", 10.0, self.shape, learn=True)

    def coefs(self) -> tuple[Any, ...]:
        return self.tau.decay(), 1.0


def test_a_neuron_of_a_user_by_inheritance() -> None:
    x = torch.rand(20, 2, 3, requires_grad=True)
    grads = []
    for engine in ("reference", "cpu"):
        torch.manual_seed(0)
        neuron = Quadratic(3, engine=engine)
        with interpreted():
            y, _ = neuron(x)
            assert_fires(y)
            grads.append(torch.autograd.grad(y.sum(), [x, neuron.tau.raw]))
    for a, b in zip(*grads, strict=True):
        assert float(b.abs().max()) > 0
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert traced_by(Quadratic(3)) == ""


def test_a_neuron_of_a_user_as_a_function() -> None:
    arguments: dict[str, Any] = {"states": ("v",), "constants": {"decay": 0.9, "threshold": 1.0}}
    neuron = StepNeuron(3, step, learn=("threshold",), **arguments)
    assert [n for n, _ in neuron.named_parameters()] == ["constants.threshold.raw"]
    x = torch.rand(20, 2, 3)
    decay = LIF(3, tau_mem=-1 / math.log(0.9))
    y, _ = neuron(x)
    assert_fires(y)
    assert_same(y.detach(), decay(x)[0])
    with pytest.raises(
        ParameterError,
        match=r"step takes the constants \('decay', 'threshold'\), got values for \('decay',\)",
    ):
        StepNeuron(3, step, states=("v",), constants={"decay": 0.9})
    with pytest.raises(
        ParameterError, match=r"StepNeuron.step expected the arguments \(x, u, \*coefs\), got \('x', 'v'"
    ):
        StepNeuron(3, step, states=("u",), constants={"decay": 0.9, "threshold": 1.0})
    with pytest.raises(
        ParameterError, match="unknown learnable constant of StepNeuron 'treshold'; did you mean 'threshold'"
    ):
        StepNeuron(3, step, learn=("treshold",), **arguments)


def test_a_neuron_without_its_parts() -> None:
    class NoStates(Neuron):
        step = staticmethod(step)

    class NoCoefs(Neuron):
        states = ("v",)
        step = staticmethod(step)

    class NoStep(Neuron):
        states = ("v",)

    with pytest.raises(ParameterError, match="set `states` to the names of the state variables"):
        NoStates(3)
    with pytest.raises(
        ParameterError, match=r"NoStep expected a static method step\(x, v, \*coefs\), got none"
    ):
        NoStep(3)
    with pytest.raises(NotImplementedError, match=r"NoCoefs needs coefs\(\)"):
        NoCoefs(3)(torch.rand(2, 1, 3))


def test_a_neuron_that_cannot_be_traced_says_so_once() -> None:
    def branching(x: Any, v: Any, threshold: Any) -> Any:
        v = v + x
        if (v > 5.0).any():
            v = v.clamp(max=5.0)
        s = spike(v - threshold)
        return s, v - threshold * s

    neuron = StepNeuron(3, branching, states=("v",), constants={"threshold": 1.0})
    assert "do not know .any" in traced_by(neuron)
    with pytest.warns(UserWarning, match="reference engine"):
        y, _ = neuron(torch.rand(20, 2, 3))
    assert_fires(y)


def test_surrogates_by_default() -> None:
    assert LIF(1).surrogate == ATan(2.0) == IF(1).surrogate == CubaLIF(1).surrogate
    assert ALIF(1).surrogate == MultiGaussian() == AdLIF(1).surrogate
    assert LIF(1, surrogate=FastSigmoid(25.0)).surrogate == FastSigmoid(25.0)
    assert [c.spiking for c in (IF, LIF, CubaLIF, ALIF, AdLIF, LeakyIntegrator)] == [True] * 5 + [False]


def test_a_neuron_is_a_module_like_any_other() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model.add_module("neuron", LIF(3, learn=("tau_mem",)))
    assert len(list(model.parameters())) == 3
    moved = LIF(3, learn=("tau_mem",)).double()
    assert moved.tau_mem.raw.dtype == torch.float64 == moved.threshold().dtype
    assert moved(torch.rand(4, 1, 3, dtype=torch.float64))[0].dtype == torch.float64


@pytest.mark.parametrize("kind", [LIF, ALIF, AdLIF, CubaLIF, IF])
@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_the_membrane_can_be_the_output(kind: Any, engine: str) -> None:
    """What it hands on is the state after each step; spikes and resets inside stay as they are."""
    options = {"threshold": 0.2, "engine": engine}
    spikes, read = kind(3, **options), kind(3, **options, output="membrane")
    assert spikes.emits_spikes and not read.emits_spikes
    torch.manual_seed(0)
    x = torch.rand(30, 2, 3, requires_grad=True)
    y, state = read(x)
    fired, same = spikes(x)
    assert fired.sum() > 5
    for a, b in zip(state, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    place = kind.states.index("v")
    step_state = None
    for t in range(30):
        _, step_state = spikes(x[t : t + 1], step_state)
        torch.testing.assert_close(y[t], step_state[place], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(gradient.abs().sum(0).gt(0).all())


def test_a_neuron_without_a_membrane_cannot_hand_it_on() -> None:
    def step(x: Any, q: Any, threshold: Any) -> Any:
        s = spike(q + x - threshold)
        return s, q + x - s

    with pytest.raises(ParameterError, match='unknown output "?current|output'):
        LIF(3, output="current")

    class Charge(Neuron):
        states = ("q",)

        def coefs(self) -> tuple[float]:
            return (1.0,)

    Charge.step = staticmethod(step)  # type: ignore[assignment]
    with pytest.raises(ParameterError, match='no state "v"'):
        Charge(3, output="membrane")


def test_constants_may_come_as_a_list_or_an_array() -> None:
    wanted = LIF(3, tau_mem=torch.tensor([5.0, 10.0, 20.0]))
    x = torch.rand(20, 2, 3)
    for given in ([5.0, 10.0, 20.0], (5, 10, 20), np.array([5.0, 10.0, 20.0])):
        assert torch.equal(LIF(3, tau_mem=given)(x)[0], wanted(x)[0])
        assert LIF(3, tau_mem=given, learn=("tau_mem",)).tau_mem.raw.shape == (3,)
    for wrong, said in (([5.0, 10.0], "broadcasts to"), (["a"], "numbers one per neuron"), ([1j], "numbers")):
        with pytest.raises(ParameterError, match=said):
            LIF(3, tau_mem=wrong)  # type: ignore[arg-type]


def test_a_parameter_as_a_constant_is_not_silently_fixed() -> None:
    def step(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + x
        s = spike(v - 1.0)
        return s, v - s

    mine = nn.Parameter(torch.tensor(0.9))
    with pytest.raises(ParameterError, match=r"learn=\('decay',\)"):
        StepNeuron(2, step, states=("v",), constants={"decay": mine})
    learnt = StepNeuron(2, step, states=("v",), constants={"decay": mine}, learn=("decay",))
    assert [p.shape for p in learnt.parameters()] == [(2,)]
    assert not list(StepNeuron(2, step, states=("v",), constants={"decay": mine.detach()}).parameters())


@pytest.mark.parametrize("raw", [1e4, 1e6, 2.7e8, 3e8, 1e30, -1e9])
def test_a_constant_far_outside_is_held_at_its_bound(raw: float) -> None:
    for bound in ({"low": 0.0}, {"low": 0.0, "high": 1.0}):
        constant = Constant("a", 0.5, (2,), learn=True, **bound)
        with torch.no_grad():
            constant.raw.fill_(math.copysign(100.0, raw))
        want = constant().detach().clone()
        with torch.no_grad():
            constant.raw.fill_(raw)
        value = constant()
        held = value.detach()
        assert torch.equal(held, want) and float(held.min()) > 0 and bool(held.isfinite().all())
        value.sum().backward()
        assert bool((constant.raw.grad > 0).all()), "the gradient of the end, which brings it back"


def test_an_output_without_a_gradient_is_told_of() -> None:
    def hard(x: Any, v: Any, decay: Any) -> Any:
        v = decay * v + x
        s = (v > 1.0).float()
        return s, v * (1 - s)

    with pytest.warns(
        UserWarning, match=r"StepNeuron: no gradient passes the step's output.*spike\(v - threshold\)"
    ):
        StepNeuron(3, hard, states=("v",), constants={"decay": 0.9})

    def through_time(x: Any, v: Any) -> Any:  # only what was before is heard
        return v, torch.tanh(x)

    StepNeuron(3, through_time, states=("v",))  # warnings are errors here


def test_constants_may_have_their_value_in_the_signature() -> None:
    def step(x: Any, v: Any, decay: Any = 0.5, gain: Any = 2.0) -> Any:
        v = decay * v + gain * x
        return v, v

    x = torch.ones(1, 1, 2)
    assert StepNeuron(2, step, states=("v",))(x)[0].flatten().tolist() == [2.0, 2.0]
    given = StepNeuron(2, step, states=("v",), constants={"gain": 3.0}, learn=("decay",))
    assert given(x)[0].flatten().tolist() == [3.0, 3.0] and given.constants["decay"].learnable
    with pytest.raises(ParameterError, match="got values for"):
        StepNeuron(2, step, states=("v",), constants={"tau": 3.0})
