"""A synapse and the neurons behind it as one loop: what the two give one after the other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import pytest
import torch
from helpers import Outcome, assert_fires, assert_near, assert_same, differentiate, interpreted
from test_parity import CASES, F32, F64
from torch import Tensor, nn

from spiketide import ALIF, LIF, BatchNorm, Dense, LeakyIntegrator, Sequential, StepNeuron, spike
from spiketide.errors import EngineError, NonFiniteError, ShapeError
from spiketide.kernels import project, projection
from spiketide.neurons import Neuron
from spiketide.probe import record
from spiketide.scan import projected, projected_cpu
from spiketide.scan.autograd import scan_registered

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections go by events however many there are."""
    listed = projection.list_events

    def always(x: Tensor, n_out: int, *, gradient: bool = True, engine: str | None = None) -> Any:
        return listed(x, n_out, gradient=gradient, engine=engine or "event")

    monkeypatch.setattr(projection, "list_events", always)
    monkeypatch.setattr(projected, "list_events", always)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which halves of the fused loop ran."""
    seen: list[str] = []

    def watch(half: str) -> None:
        run = getattr(projected_cpu, half)

        def watched(*arguments: Any) -> Any:
            seen.append(half)
            return run(*arguments)

        monkeypatch.setattr(projected_cpu, half, watched)

    watch("forward")
    watch("backward")
    return seen


def drawn(
    *shape: int, rate: float = 0.3, dtype: torch.dtype = torch.float32, graded: bool = False, seed: int = 0
) -> Tensor:
    """Spikes, or values here and there."""
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.rand(*shape, generator=generator) < rate
    values = torch.randn(*shape, generator=generator, dtype=torch.float64) if graded else torch.ones(1)
    return (spikes * values).to(dtype)


def operands_of(neuron: Neuron, x: Tensor, n: int, bias: bool) -> dict[str, Tensor]:
    """Input, weights that make the neurons fire, a state that is not zero, constants that differ from neuron to neuron."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_in = x.shape[2]
    active = 0.3 * n_in  # the current is then as in the parity tests: 0.35 in the mean, 0.6 about it
    operands = {"x": x, "weight": (0.35 / active + 0.6 / active**0.5 * normal(n_in, n)).t()}
    if bias:
        operands["bias"] = 0.1 * normal(n)
    operands |= {f"state{k}": 0.2 * normal(x.shape[1], n).abs() for k in range(len(neuron.states))}
    for k, coef in enumerate(neuron.coefs()):
        value = coef.detach().double()
        spread = value * (1 + 0.04 * normal(n)) if k % 2 == 0 else value.reshape(-1)[:1].reshape(())
        operands[f"coef{k}"] = spread.clamp(max=0.999 if float(value.max()) < 1 else 1e9)
    return {name: tensor.to(x.dtype) for name, tensor in operands.items()}


def outcomes(
    neuron: Neuron,
    operands: dict[str, Tensor],
    lengths: Tensor | None = None,
    wanted: Sequence[str] | None = None,
) -> tuple[Outcome, Outcome]:
    """Fused, and one after the other."""
    key = neuron._key

    def parts(given: dict[str, Tensor]) -> tuple[Any, ...]:
        state = [t for name, t in given.items() if name.startswith("state")]
        coefs = [t for name, t in given.items() if name.startswith("coef")]
        return given["x"], given["weight"], given.get("bias"), state, coefs

    def fused(given: dict[str, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        y, final = projected.projected_scan(key, *parts(given), lengths)
        assert final is not None
        return y, final

    def apart(given: dict[str, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        x, weight, bias, state, coefs = parts(given)
        current = project(x, weight, bias, engine="event")
        return scan_registered(key, current, state, coefs, engine="cpu", lengths=lengths)

    return differentiate(fused, operands, wanted), differentiate(apart, operands, wanted)


def assert_equal(got: Outcome, want: Outcome, rtol: float) -> None:
    assert_same(got.y, want.y, "outputs")
    for k, (a, b) in enumerate(zip(got.final, want.final, strict=True)):
        assert_same(a, b, f"state {k}")
    assert got.grads.keys() == want.grads.keys()
    for name, grad in want.grads.items():
        if name in ("x", "weight", "bias"):  # the same terms in another order
            assert_near(got.grads[name], grad, rtol, f"gradient of {name}")
        else:
            assert_same(got.grads[name], grad, f"gradient of {name}")


def silenced(x: Tensor, lengths: Tensor) -> Tensor:
    return x * (torch.arange(len(x)).unsqueeze(1) < lengths).unsqueeze(2)


# the step's own source is printed by the same code as that of the scan, whose tests go through all of the table
SOME = [n for n in CASES if n.endswith("exp-scaled") or n.startswith(("IF-", "Normalized", "Balanced"))]


@pytest.mark.parametrize("name", SOME)
def test_every_neuron_and_reset(name: str, sparse: None) -> None:
    neuron = CASES[name](5)
    lengths = torch.tensor([16, 11, 0, 16])
    x = silenced(drawn(16, 4, 6), lengths)
    with interpreted():
        got, want = outcomes(neuron, operands_of(neuron, x, 5, True), lengths)
    if neuron.spiking and not name.endswith("-none"):
        assert_fires(want.y, name)
    assert_equal(got, want, F32)


@pytest.mark.parametrize("name", ["LIF-hard-euler-plain", "ALIF-delayed-euler-plain"])
def test_without_lengths(name: str, sparse: None) -> None:
    neuron = CASES[name](5)
    with interpreted():
        got, want = outcomes(neuron, operands_of(neuron, drawn(20, 3, 6), 5, False))
    assert_fires(want.y, name)
    assert_equal(got, want, F32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("graded", [False, True], ids=["spikes", "values"])
def test_compiled(dtype: torch.dtype, graded: bool, sparse: None) -> None:
    neuron = CASES["ALIF-delayed-exp-scaled"](70).to(dtype)
    x = drawn(23, 7, 37, rate=0.1, dtype=dtype, graded=graded)
    lengths = torch.tensor([23, 13, 0, 1, 22, 23, 5])
    got, want = outcomes(neuron, operands_of(neuron, silenced(x, lengths), 70, True), lengths)
    assert_fires(want.y)
    assert_equal(got, want, F32 if dtype == torch.float32 else F64)


SHAPES = [
    pytest.param(1, 1, 1, 1, id="one of each"),
    pytest.param(3, 1, 65, 17, id="one sample"),
    pytest.param(1, 9, 64, 64, id="one step"),
    pytest.param(33, 5, 13, 96, id="parts of unequal size"),
    pytest.param(40, 11, 129, 33, id="an odd number of neurons"),
    pytest.param(6, 3, 9, projected_cpu.TILE + 30, id="more than a tile"),
    pytest.param(4, 3, 1500, 200, id="weights that do not fit in the cache"),
]


@pytest.mark.parametrize(("steps", "batch", "n_in", "n"), SHAPES)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_shapes(steps: int, batch: int, n_in: int, n: int, bias: bool, sparse: None) -> None:
    neuron = LIF(n, tau_mem=6.0, threshold=0.9)
    assert_equal(*outcomes(neuron, operands_of(neuron, drawn(steps, batch, n_in), n, bias)), 2 * F32)


def test_the_shapes_meet_every_way_through_the_backward() -> None:
    divisions = [projected_cpu._division(*shape.values, 4) for shape in SHAPES]
    parts = [-(-shape.values[1] // chunk) for shape, (chunk, _, _) in zip(SHAPES, divisions, strict=True)]
    blocks = [-(-shape.values[0] // span) for shape, (_, span, _) in zip(SHAPES, divisions, strict=True)]
    narrow = [tile < shape.values[3] for shape, (_, _, tile) in zip(SHAPES, divisions, strict=True)]
    assert {1, 2} <= set(parts) and max(parts) > 2 and set(narrow) == {True, False} and blocks


def test_many_blocks_of_steps(sparse: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected_cpu, "BLOCK_BYTES", 1 << 12)
    neuron = ALIF(64, tau_mem=6.0, tau_adapt=20.0, threshold=0.6, learn=("tau_mem", "tau_adapt"))
    x = drawn(50, 12, 40)
    assert projected_cpu._division(50, 12, 40, 64, 4) == (3, 5, 64)
    got, want = outcomes(neuron, operands_of(neuron, x, 64, True))
    assert_fires(want.y)
    assert_equal(got, want, F32)


@pytest.mark.parametrize(
    "wanted", [["weight"], ["weight", "bias"], ["weight", "coef0"], ["x", "weight"], ["weight", "state0"]]
)
def test_gradients_of_some_operands_only(wanted: list[str], sparse: None) -> None:
    neuron = LIF(24, tau_mem=6.0, threshold=0.9, scale_input=True)
    with interpreted():
        got, want = outcomes(neuron, operands_of(neuron, drawn(20, 3, 16), 24, True), wanted=wanted)
    assert_equal(got, want, F32)
    assert float(got.grads[wanted[-1]].abs().max()) > 0


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one core")
def test_threads_change_nothing(two_threads: None, sparse: None) -> None:
    neuron = LIF(256, tau_mem=6.0, threshold=0.9)
    operands = operands_of(neuron, drawn(60, 20, 100), 256, True)
    both = []
    for count in (2, 1):
        torch.set_num_threads(count)
        both.append(outcomes(neuron, operands)[0])
    assert_fires(both[0].y)
    assert_same(both[0].y, both[1].y)
    for name, grad in both[0].grads.items():
        assert_same(both[1].grads[name], grad, name)


def test_a_second_backward_gives_the_same_again(sparse: None) -> None:
    neuron = LIF(32, tau_mem=6.0, threshold=0.9)
    model = Sequential(Dense(20, 32), neuron)
    y, (_, (v,)) = model(drawn(30, 4, 20))
    loss = (y * drawn(30, 4, 32, graded=True)).sum() + v.sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert_same(a, b)
    with pytest.raises(EngineError, match="first derivatives only"):
        torch.autograd.grad(model(drawn(30, 4, 20))[0].sum(), [model[0].weight], create_graph=True)


# ------------------------------------------------------------------------------------------------- in a sequence


def network(n_in: int = 200, n: int = 128) -> Sequential:
    torch.manual_seed(0)
    model = Sequential(Dense(n_in, n), LIF(n, tau_mem=6.0, threshold=0.4), Dense(n, 5), LeakyIntegrator(5))
    with torch.no_grad():
        model[0].weight.mul_(4.0)
    return model


X = drawn(60, 20, 200, rate=0.05)


def apart(model: Sequential, x: Tensor, state: Any = None) -> Tensor:
    """The layers called one after the other."""
    for layer in model:
        x, _ = layer(x)
    return x


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), list(model.parameters())))


def test_a_sequence_takes_it_where_few_inputs_spike(runs: list[str]) -> None:
    model = network()
    y, _ = model(X)
    want = apart(model, X)
    got = gradients(model, y)
    assert runs == ["forward", "backward"]  # the read-out is not worth it
    assert_near(y, want, F32)
    for a, b in zip(got, gradients(model, want), strict=True):
        assert_near(a, b, F32)
    model(drawn(60, 20, 200, rate=0.9))
    assert runs == ["forward", "backward"]  # a matrix product is cheaper
    with torch.no_grad():
        assert_near(model(X)[0], want, F32)
    assert runs == ["forward", "backward", "forward"]


def test_dense_input_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), drawn(60, 20, 200, rate=0.9, graded=True)
    want = apart(model, x)
    monkeypatch.setattr(Dense, "apply_steps", lambda *a: pytest.fail("projected again"))
    with pytest.raises(BaseException, match="projected again"):
        apart(model, x)
    pair = Sequential(model[0], model[1])
    assert_same(pair(x)[0], model[1](project(x, model[0].weight, model[0].bias))[0])
    assert want.isfinite().all()


def test_it_streams_and_heeds_lengths(runs: list[str]) -> None:
    model = network()
    whole, end = model(X)
    first, state = model(X[:25])
    second, state = model(X[25:], state)
    assert_near(torch.cat([first, second]), whole, F32)
    assert_same(state[1][0], end[1][0])
    lengths = torch.randint(1, 60, (20,), generator=torch.Generator().manual_seed(1))
    noisy = X.masked_fill((torch.arange(60).unsqueeze(1) >= lengths).unsqueeze(2), torch.nan)
    y, _ = model(noisy, lengths=lengths)
    for b in (0, 7):
        assert_near(y[: lengths[b], b], model(X[: lengths[b], b : b + 1])[0][:, 0], F32)
    assert all(bool(g.isfinite().all()) for g in gradients(model, y))
    assert runs.count("forward") == 4  # of one sample alone it is not worth it


@pytest.mark.parametrize("where", ["forward", "pre", "backward", "neuron", "neuron's input", "everywhere"])
def test_whoever_listens_hears_what_passes(where: str, runs: list[str]) -> None:
    model, heard = network(), []
    dense, neuron = model[0], model[1]

    def hook(module: nn.Module, *arguments: Any) -> None:
        heard.append(type(module).__name__)

    handle = {
        "forward": lambda: dense.register_forward_hook(hook),
        "pre": lambda: dense.register_forward_pre_hook(hook),
        "backward": lambda: dense.register_full_backward_hook(hook),
        "neuron": lambda: neuron.register_forward_hook(hook),
        "neuron's input": lambda: neuron.register_forward_pre_hook(hook),
        "everywhere": lambda: nn.modules.module.register_module_forward_hook(hook),
    }[where]()
    try:
        model(X.clone().requires_grad_())[0].sum().backward()
    finally:
        handle.remove()
    assert heard and not runs
    model(X)
    assert runs == ["forward"]


def test_recording_spikes_does_not_keep_them_apart(runs: list[str]) -> None:
    model = network()
    with record(model) as records:
        y, _ = model(X)
    assert runs == ["forward"]
    assert_same(records["1"], model[1](model[0](X)[0])[0])
    assert_same(records["3"], y)


def test_weights_may_change_between_two_backwards(runs: list[str]) -> None:
    model = network()
    dense, neuron = model[0], model[1]
    y, _ = Sequential(dense, neuron)(X)
    first = torch.autograd.grad(y[:30].sum(), dense.weight, retain_graph=True)[0]
    with torch.no_grad():
        dense.weight.add_(1.0)
    second = torch.autograd.grad(y[30:].sum(), dense.weight)[0]
    assert runs == ["forward", "backward", "backward"] and bool(first.any()) and bool(second.any())
    # the gradient of an input reads the weights, which must then be those of the forward, as in torch
    y, _ = Sequential(dense, neuron)(X.clone().requires_grad_())
    with torch.no_grad():
        dense.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("how", ["compiled", "replaced"])
def test_a_layer_whose_forward_is_not_its_own_is_called(place: int, how: str, runs: list[str]) -> None:
    model, called = network(), []
    layer = model[place]
    if how == "compiled":
        layer.compile(backend="eager")
    else:
        own = layer.forward

        def mine(x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> Any:
            called.append(place)
            return own(x, state, lengths=lengths)

        layer.forward = mine
    with torch.no_grad():  # the compiler warns of inputs that are not leaves
        y, _ = model(X)
    torch.compiler.reset()
    assert not runs and called == [place] * (how == "replaced")
    assert_near(y, network()(X)[0], F32)


def test_outputs_may_be_changed_in_place() -> None:
    for batch in (4, 64):  # below and above the size from which memory is pooled
        x = drawn(100, batch, 64, rate=0.05)
        pair = Sequential(Dense(64, 256), LIF(256, threshold=0.3))
        y, _ = pair(x)
        want = torch.autograd.grad((0.5 * y).square().sum(), pair[0].weight, retain_graph=True)[0]
        y *= 0.5
        assert_near(torch.autograd.grad(y.square().sum(), pair[0].weight)[0], want, F32)
        y, _ = Sequential(Dense(64, 256), nn.ReLU(inplace=True))(drawn(100, batch, 64, rate=0.9))
        y.sum().backward()


class Doubled(Dense):
    def apply_steps(self, x: Tensor) -> Tensor:
        return 2 * super().apply_steps(x)


class Patient(LIF):
    def forward(self, x: Tensor, state: Any = None, **options: Any) -> Any:
        return super().forward(0.5 * x, state, **options)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (Doubled(200, 128), LIF(128)),
        lambda: (Dense(200, 128), Patient(128)),
        lambda: (Dense(200, 128), BatchNorm(128), LIF(128)),
        lambda: (Dense(200, 128), LIF(128, engine="reference")),
        lambda: (Dense(200, 128), LIF(128, checkpoint=10)),
    ],
    ids=["another synapse", "another neuron", "a norm between", "reference engine", "checkpoint"],
)
def test_what_is_not_the_two_layers_is_left_as_it_was(
    layers: Callable[[], tuple[nn.Module, ...]], runs: list[str]
) -> None:
    model = Sequential(*layers())
    with torch.no_grad():
        next(model.parameters()).mul_(6.0)
    model.eval()
    y, _ = model(X)
    assert_same(y, apart(model, X))
    assert_fires(y)
    assert not runs


def test_frozen_weights_mixed_precision_and_a_compiled_graph_are_left_alone(runs: list[str]) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    model(X)[0].sum().backward()
    assert not runs
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X)
    assert not runs


def test_a_neuron_of_ones_own_is_fused_too(runs: list[str]) -> None:
    def step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
        v = decay * v * (1 + 0.05 * v) + x
        s = spike(v - threshold)
        return s, v * (1 - s.detach())

    mine = StepNeuron(128, step, states=("v",), constants={"decay": 0.8, "threshold": 0.5}, learn=("decay",))
    model = Sequential(network()[0], mine)
    y, _ = model(X)
    assert_fires(y)
    got = gradients(model, y)
    assert runs == ["forward", "backward"]
    want = apart(model, X)
    assert_same(y, want)
    for a, b in zip(got, gradients(model, want), strict=True):
        assert_near(a, b, F32)


def test_errors_name_the_layer_and_the_cause() -> None:
    model = network()
    with pytest.raises(ShapeError, match=r"layer 0: Dense expected"):
        model(X[..., :10])
    with pytest.raises(ShapeError, match=r"layer 1: LIF"):
        model(X, ((), (torch.zeros(3, 128),), (), (torch.zeros(20, 5),)))
    with torch.no_grad():
        model[0].weight[3, 4] = torch.nan
    with pytest.raises(
        NonFiniteError,
        match=r"layer 1: LIF expected finite input, got NaN or infinity first at step \d+ of sample",
    ):
        model(X)
    bad = X.clone()
    bad[7, 3, 2] = torch.inf
    with pytest.raises(NonFiniteError, match=r"layer 1: LIF expected finite input, .* step 7 of sample 3"):
        network()(bad)
