"""The GPU kernels in Triton's interpreter, against the reference loop.

Not collected by itself: ``TRITON_INTERPRET=1`` must be set before Triton is imported, so ``test_gpu.py`` runs this file in a
process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spiketide import ALIF, AdLIF, BalancedResonateFire, Dense, Recurrent, SEAdLIF, spike
from spiketide.errors import EngineError
from spiketide.scan import Delayed, Dynamics, gpu, gpu_graph, recurrent_scan, scan
from spiketide.scan.dynamics import register
from spiketide.surrogate import ATan, FastSigmoid, MultiGaussian, Sigmoid, Surrogate

HALF = (torch.bfloat16, torch.float16)


def lif_step(x: Any, v: Any, decay: Any, threshold: Any) -> Any:
    v = decay * v + x
    s = spike(v - threshold)
    return s, v - threshold * s


def alif_step(x: Any, v: Any, a: Any, s: Any, decay_mem: Any, decay_adapt: Any, weight: Any) -> Any:
    a = decay_adapt * a + (1 - decay_adapt) * s
    threshold = 0.1 + weight * a
    v = decay_mem * v + (1 - decay_mem) * x - threshold * s
    s = spike(v - threshold)
    return s, v, a, s


def swap_step(x: Any, a: Any, b: Any, decay: Any) -> Any:
    """A new state is another state's old value."""
    return spike(b + x - 0.5), decay * b + x, a


def odd_step(x: Any, v: Any, gain: Any) -> Any:
    """Every operation the printer can spell."""
    v = 0.5 * v + x
    u = torch.tanh(v) + torch.sigmoid(v) * torch.exp(-torch.abs(v)) - torch.sin(v) * torch.cos(v)
    u = u + torch.log(1.0 + v * v) / torch.sqrt(2.0 + v) + torch.atan(v) * torch.erf(v) + (v * v + 1.0) ** 0.7
    u = torch.maximum(u, v) + torch.minimum(v.detach(), u) + torch.clamp(v, -1.0, 1.0)
    u = torch.where(((u > 0) & (v > 0)) | ~(v <= 1.0), u, 0.5 * u)
    s = spike(gain * u - 2.0)
    return s, v - 0.1 * s * u + (u > 1.0).to(u.dtype)


class Case(NamedTuple):
    dynamics: Dynamics
    surrogate: Surrogate
    coefs: tuple[tuple[float, float], ...]
    """Range of every coefficient."""
    gain: float


CASES = {
    "lif": Case(
        Dynamics(("v",), ("decay", "threshold"), lif_step), ATan(2.0), ((0.8, 0.95), (0.9, 1.1)), 0.5
    ),
    "alif": Case(
        Dynamics(("v", "a", "s"), ("decay_mem", "decay_adapt", "weight"), alif_step),
        MultiGaussian(),
        ((0.8, 0.95), (0.9, 0.98), (0.5, 1.8)),
        1.0,
    ),
    "swap": Case(Dynamics(("a", "b"), ("decay",), swap_step), Sigmoid(5.0), ((0.5, 0.9),), 0.3),
    "odd": Case(Dynamics(("v",), ("gain",), odd_step), FastSigmoid(5.0), ((0.4, 0.7),), 0.3),
}


class Operands(NamedTuple):
    x: Tensor
    state: list[Tensor]
    coefs: list[Tensor]
    gy: Tensor
    gstate: list[Tensor]


def draw(
    case: Case,
    steps: int,
    batch: int = 3,
    shape: tuple[int, ...] = (40,),
    dtype: torch.dtype = torch.float32,
    scalar: bool = False,
    seed: int = 0,
) -> Operands:
    made = torch.Generator().manual_seed(seed)
    arithmetic = torch.float32 if dtype in HALF else dtype

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=made, dtype=torch.float64).to(arithmetic)

    coefs = []
    for k, (low, high) in enumerate(case.coefs):
        size = () if scalar and k % 2 == 0 else shape
        coefs.append(
            (low + (high - low) * torch.rand(size, generator=made, dtype=torch.float64)).to(arithmetic)
        )
    state = [0.3 * normal(batch, *shape) for _ in case.dynamics.state]
    x = (case.gain * normal(steps, batch, *shape)).to(dtype)
    return Operands(
        x, state, coefs, normal(steps, batch, *shape).to(dtype), [normal(batch, *shape) for _ in state]
    )


Run = Callable[[str, Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]


def results(run: Run, engine: str, o: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and final state; gradients of input, initial state and coefficients."""
    x, state, coefs = (
        o.x.clone().requires_grad_(),
        [s.clone() for s in o.state],
        [c.clone() for c in o.coefs],
    )
    leaves = [x, *(s.requires_grad_() for s in state), *(c.requires_grad_() for c in coefs)]
    y, final = run(engine, x, state, coefs)
    grads = torch.autograd.grad([y, *final[: len(state)]], leaves, [o.gy, *o.gstate], allow_unused=True)
    return [y.detach(), *(f.detach() for f in final)], [
        torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)
    ]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1 / 128, torch.float16: 1 / 1024}


def close(got: Tensor, want: Tensor, name: str) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape, name
    # a single number's gradient is a sum over all neurons, whose terms cancel
    tolerance = TOLERANCE[got.dtype] * (30 if got.numel() == 1 else 1)
    scale = want.double().abs().max().clamp(min=1e-3)
    worst = ((got.double() - want.double()).abs().max() / scale).item() if got.numel() else 0.0
    assert worst <= tolerance, f"{name}: {worst:.2e} > {tolerance:.0e}"


def compare(run: Run, o: Operands, lengths: Tensor | None = None, exact: bool = True) -> None:
    wanted, want_grads = results(run, "reference", o)
    values, grads = results(run, "gpu", o)
    y = wanted[0].float()
    count = y.numel() if lengths is None else int(lengths.sum()) * y[0, 0].numel()
    if count > 500:  # a silent net passes anything
        assert 0.01 < y.sum().item() / count < 0.60
    for k, (got, want) in enumerate(zip(values, wanted, strict=True)):
        name = f"state {k - 1}" if k else "outputs"
        if exact or k == 0:
            assert got.dtype == want.dtype and torch.equal(got, want), name
        close(got, want, name)
    names = ["x", *(f"state {k}" for k in range(len(o.state))), *(f"coef {k}" for k in range(len(o.coefs)))]
    for got, want, name in zip(grads, want_grads, names, strict=True):
        close(got, want, "gradient of " + name)


def plain(case: Case, lengths: Tensor | None = None, checkpoint: int | None = None) -> Run:
    def run(engine: str, x: Tensor, state: Sequence[Tensor], coefs: Sequence[Tensor]) -> Any:
        many = None if engine == "reference" else checkpoint
        return scan(
            case.dynamics, x, state, coefs, case.surrogate, engine=engine, lengths=lengths, checkpoint=many
        )

    return run


def test_interpreter_is_on() -> None:
    assert gpu.interpreted()


@pytest.mark.parametrize("name", CASES)
def test_parity(name: str) -> None:
    # torch's exp and its kin differ in the last bit between its vector code and the rest of a row
    exact = name != "odd"
    compare(plain(CASES[name]), draw(CASES[name], 17), exact=exact)
    compare(plain(CASES[name]), draw(CASES[name], 2, scalar=True), exact=exact)
    compare(plain(CASES[name]), draw(CASES[name], 1), exact=exact)
    compare(plain(CASES[name]), draw(CASES[name], 7, dtype=torch.float64), exact=exact)


@pytest.mark.parametrize(("name", "dtype"), [("alif", torch.bfloat16), ("lif", torch.float16)])
def test_half_storage(name: str, dtype: torch.dtype) -> None:
    """Inputs, outputs and their gradients in 16 bits; state, coefficients and arithmetic in 32."""
    case, lengths = CASES[name], torch.tensor([9, 5, 2])
    o = draw(case, 9, dtype=dtype)
    compare(plain(case), o)
    compare(plain(case, lengths, checkpoint=4), o, lengths)
    y, final = scan(case.dynamics, o.x, o.state, o.coefs, case.surrogate, engine="gpu")
    assert y.dtype == dtype and all(f.dtype == torch.float32 for f in final)


def test_half_storage_keeps_no_copy_of_the_input_and_float32_membranes() -> None:
    case = CASES["lif"]
    o = draw(case, 5, dtype=torch.bfloat16)
    key = register(case.dynamics, case.surrogate)
    y, final, stores = gpu.forward(key, o.x, o.state, o.coefs, None, (True, (True, True)))
    assert y.dtype == torch.bfloat16 and [z.dtype for z in stores] == [torch.float32]
    gx, gstate, sums = gpu.backward(
        key, o.gy, o.gstate, o.x, o.state, o.coefs, stores, None, (True, (True, True))
    )
    assert gx is not None and gx.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in (*final, *gstate, *sums))


def test_graded_outputs_in_half_storage() -> None:
    leak = Dynamics(("v",), ("decay",), lambda x, v, decay: (decay * v + x, decay * v + x))
    x = torch.randn(6, 2, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    want, (v,) = scan(leak, x, None, (0.9,), ATan(2.0), engine="reference")
    got, (u,) = scan(leak, x, None, (0.9,), ATan(2.0), engine="gpu")
    assert torch.equal(u, v) and want.unique().numel() > 200
    # the interpreter cuts bfloat16 off where a GPU rounds to nearest (test_gpu.py looks at that instruction)
    assert ((got.float() - want.float()).abs() <= want.float().abs() / 128).all()


@pytest.mark.parametrize("name", ["alif", "swap"])
def test_lengths(name: str) -> None:
    case = CASES[name]
    for ends in ([0, 11, 6, 9], [11, 10, 3, 1]):
        lengths = torch.tensor(ends)
        o = draw(case, 11, batch=4, shape=(4, 6))
        past = torch.arange(11).unsqueeze(1) >= lengths
        # whatever stands in the padding
        o.x[past], o.gy[past] = float("nan"), float("nan")
        compare(plain(case, lengths), o, lengths)
    gone = results(plain(case, torch.zeros(4, dtype=torch.int64)), "gpu", o)
    assert not gone[0][0].any() and all(torch.equal(a, b) for a, b in zip(gone[0][1:], o.state, strict=True))
    assert not gone[1][0].any() and all(
        torch.equal(a, b) for a, b in zip(gone[1][1:], o.gstate, strict=False)
    )


@pytest.mark.parametrize("lengths", [None, [11, 4, 7]])
def test_nothing_unwritten_is_read(lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh buffers are full of NaN; with lengths, rows that no block reaches stay so in the saved values."""
    empty = torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(float("nan"))

    case = CASES["alif"]
    ends = None if lengths is None else torch.tensor(lengths)
    o = draw(case, 11, shape=(30,))
    monkeypatch.setattr(torch, "empty_like", poisoned)
    compare(plain(case, ends), o, ends)


@pytest.mark.parametrize("lengths", [None, [11, 4, 7]])
def test_checkpoints_are_exact(lengths: list[int] | None) -> None:
    case = CASES["alif"]
    ends = None if lengths is None else torch.tensor(lengths)
    o = draw(case, 11, shape=(30,))
    whole = results(plain(case, ends), "gpu", o)
    for every in (4, 40):
        for got, want in zip(results(plain(case, ends, every), "gpu", o), whole, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_non_contiguous_operands_and_several_axes() -> None:
    case = CASES["lif"]
    o = draw(case, 9, batch=2, shape=(4, 3, 5))
    x = o.x.transpose(1, 4).contiguous().transpose(1, 4)
    state = [s.transpose(0, 3).contiguous().transpose(0, 3) for s in o.state]
    channel = [c[:, :1, :1] for c in o.coefs]  # one value per channel
    gy = o.gy.transpose(0, 1).contiguous().transpose(0, 1)
    assert not x.is_contiguous() and not gy.is_contiguous()
    compare(plain(case), Operands(x, state, channel, gy, o.gstate))


@pytest.mark.parametrize("wanted", ["x", "coef", "state"])
def test_only_the_gradients_asked_for(wanted: str) -> None:
    case, o = CASES["alif"], draw(CASES["alif"], 5, shape=(20,))
    found = []
    for engine in ("reference", "gpu"):
        x, state, coefs = o.x.clone(), [s.clone() for s in o.state], [c.clone() for c in o.coefs]
        leaf = {"x": x, "coef": coefs[1], "state": state[1]}[wanted].requires_grad_()
        y, final = scan(case.dynamics, x, state, coefs, case.surrogate, engine=engine)
        found.append(torch.autograd.grad([y, *final], leaf, [o.gy, *o.gstate])[0])
    assert found[1].abs().max() > 0.01
    close(found[1], found[0], wanted)


def test_chunks_with_carried_state_equal_the_whole() -> None:
    case, o = CASES["alif"], draw(CASES["alif"], 11, shape=(30,))
    whole, final = scan(case.dynamics, o.x, o.state, o.coefs, case.surrogate, engine="gpu")
    first, state = scan(case.dynamics, o.x[:4], o.state, o.coefs, case.surrogate, engine="gpu")
    second, state = scan(case.dynamics, o.x[4:], state, o.coefs, case.surrogate, engine="gpu")
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, final, strict=True))


@pytest.mark.parametrize("size", [(0, 2, 3), (4, 0, 3)])
def test_nothing_to_do(size: tuple[int, ...]) -> None:
    case = CASES["lif"]
    x = torch.zeros(size, requires_grad=True)
    v = torch.ones(size[1:], requires_grad=True)
    c = torch.tensor(0.9, requires_grad=True)
    y, (end,) = scan(case.dynamics, x, (v,), (c, 1.0), case.surrogate, engine="gpu")
    (y.sum() + 2 * end.sum()).backward()
    assert y.shape == size and torch.equal(v.grad, torch.full_like(v, 2.0)) and c.grad.item() == 0


def test_hand_written_vjp_with_constants() -> None:
    """A gradient that is a plain number, and one that is absent from the step."""

    def vjp(gs: Any, gv: Any, x: Any, v: Any, decay: Any) -> Any:
        return gs * 3.0 + gv, gv * decay, 0.25

    dynamics = Dynamics(("v",), ("decay",), lambda x, v, decay: (spike(x), decay * v + x), vjp)
    o = draw(CASES["swap"]._replace(dynamics=dynamics), 5)
    x, c = o.x.clone().requires_grad_(), o.coefs[0].clone().requires_grad_()
    y, _ = scan(dynamics, x, o.state[:1], [c], ATan(2.0), engine="gpu")
    gx, gc = torch.autograd.grad(y, [x, c], o.gy)
    assert torch.equal(gx, 3.0 * o.gy) and torch.equal(gc, torch.full_like(c, 5 * 3 * 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpoint", [0, 1])
def test_fake_kernels_agree(dtype: torch.dtype, checkpoint: int) -> None:
    """What torch.compile is told about shapes and dtypes is what comes."""
    case, o = CASES["alif"], draw(CASES["alif"], 2, shape=(8,), dtype=dtype)
    key = register(case.dynamics, case.surrogate)
    utils = ("test_schema", "test_faketensor")
    for needs in ((), (True, False, True, False)):
        args = (key, "gpu", o.x, o.state, o.coefs, None, needs, checkpoint)
        torch.library.opcheck(torch.ops.spiketide.scan, args, test_utils=utils)
    n = 8
    back = (
        key,
        "gpu",
        o.x,
        o.state,
        torch.zeros(3, n),
        o.coefs,
        torch.eye(n),
        None,
        (False, True, False),
        True,
        checkpoint,
    )
    torch.library.opcheck(torch.ops.spiketide.recurrent_scan, back, test_utils=utils)
    out = torch.ops.spiketide.recurrent_scan(*back)
    grads = (
        key,
        "gpu",
        o.gy,
        o.gstate,
        o.gstate[0],
        o.x,
        out[0],
        o.state,
        torch.zeros(3, n),
        o.coefs,
        torch.eye(n),
    )
    grads += (out[5:], None, (False, True, False), True, checkpoint)
    torch.library.opcheck(torch.ops.spiketide.recurrent_scan_backward, grads, test_utils=utils)


# -- recurrent -------------------------------------------------------------------------------------------------------------


def dyadic(*size: int, seed: int = 1) -> Tensor:
    """Multiples of 1/16: any sum of some of them is exact, in whatever order."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-6, 7, size, generator=made).double() / 16


@pytest.mark.parametrize("way", ["one launch", "stretches", "step by step"])
@pytest.mark.parametrize(
    ("name", "dtype", "lengths", "checkpoint"),
    [
        ("lif", torch.float32, None, None),
        ("alif", torch.float32, [9, 0, 4], 5),
        ("alif", torch.float64, [1, 9, 2], None),
        ("alif", torch.bfloat16, None, 5),
    ],
)
def test_recurrent_parity(
    name: str,
    dtype: torch.dtype,
    lengths: list[int] | None,
    checkpoint: int | None,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, n, steps = CASES[name], 24, 9
    assert gpu.resident(n, torch.float32) and not gpu.resident(n, torch.float64)
    if way != "one launch":
        monkeypatch.setattr(gpu, "RESIDENT", 0)
    stretch = 4 if checkpoint is None else 2
    monkeypatch.setattr(gpu_graph, "STRETCH", stretch if way == "stretches" else 1000)
    replays = []
    monkeypatch.setattr(gpu_graph, "_captured", counted(replays))
    gpu_graph._forward.cache_clear(), gpu_graph._backward.cache_clear()
    arithmetic = torch.float32 if dtype in HALF else dtype
    ends = None if lengths is None else torch.tensor(lengths)
    o = draw(case, steps, shape=(n,), dtype=dtype)
    weight, previous = dyadic(n, n).to(arithmetic), (dyadic(3, n, seed=2) > 0.2).to(arithmetic)
    if ends is not None:
        o.x[torch.arange(steps).unsqueeze(1) >= ends] = float("nan")

    def run(engine: str, x: Tensor, state: Sequence[Tensor], coefs: Sequence[Tensor]) -> Any:
        *coefs, w, first = coefs
        many = None if engine == "reference" else checkpoint
        y, (*final, last) = recurrent_scan(
            case.dynamics,
            x,
            state,
            coefs,
            case.surrogate,
            w,
            previous=first,
            engine=engine,
            lengths=ends,
            checkpoint=many,
        )
        # the last outputs get a gradient through a state's cotangent
        return y, (final[0] + 0.5 * last, *final[1:])

    # the matrix and the outputs before the first step are compared like coefficients
    compare(run, o._replace(coefs=[*o.coefs, weight, previous]), ends)
    # nine steps are two stretches of four, either way; chunks of five and four are two of two each, twice forward, where the
    # backward leaves the first stretch of a chunk to single launches: two and one
    assert len(replays) == (0 if way != "stretches" else 2 + 2 if checkpoint is None else 4 + 4 + 3)


def counted(replays: list[int]) -> Any:
    """In place of the capture: what runs the steps, and notes each replay."""

    def captured(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def replay() -> None:
            replays.append(1)
            body()

        return replay

    return captured


def fragile_step(x: Any, v: Any, decay: Any) -> Any:
    """NaN where there is no neuron: a coefficient that was not loaded counts as 1."""
    v = decay * v + x / (1.0 - decay)
    s = spike(v - 1.0)
    return s, v - s


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize(("batch", "n"), [(37, 24), (3, 5), (16, 16), (1, 1), (17, 100)])
def test_recurrence_in_one_launch_of_many_programs(batch: int, n: int) -> None:
    """Samples and neurons that fill no tile, or several; lengths that end within some."""
    fragile = Case(Dynamics(("v",), ("decay",), fragile_step), ATan(2.0), ((0.5, 0.5),), 0.5)
    o = draw(fragile, 7, batch=batch, shape=(n,))
    weight = dyadic(n, n).float()
    ends = torch.arange(batch) % 8

    def run(engine: str, x: Tensor, state: Sequence[Tensor], coefs: Sequence[Tensor], lengths: Any) -> Any:
        y, final = recurrent_scan(
            fragile.dynamics, x, state, coefs[:1], fragile.surrogate, coefs[1], engine=engine, lengths=lengths
        )
        return y, final[:-1]

    o = o._replace(coefs=[*o.coefs, weight])
    compare(lambda *a: run(*a, lengths=None), o)
    compare(lambda *a: run(*a, lengths=ends), o, ends)


@pytest.mark.parametrize("kind", [BalancedResonateFire, SEAdLIF, AdLIF, ALIF])
def test_layers_in_recurrence(kind: Any) -> None:
    """The layers themselves, all their constants trained, against the reference loop."""
    torch.manual_seed(0)
    constants = {"omega", "damping"} if kind is BalancedResonateFire else {"tau_mem", "tau_adapt"}
    layer = Recurrent(kind(24, learn=sorted(constants)), Dense(24, 24))
    with torch.no_grad():
        layer.synapse.weight.copy_(dyadic(24, 24))
        layer.synapse.bias.zero_()
    gain = {BalancedResonateFire: 60.0, SEAdLIF: 12.0}.get(kind, 2.0)
    x = gain * torch.rand(30, 5, 24)
    gy = torch.randn(30, 5, 24)
    found = {}
    for engine in ("reference", "gpu"):
        layer.neuron.engine = engine
        layer.zero_grad()
        y, state = layer(x)
        y.backward(gy)
        found[engine] = y.detach(), [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    assert 0.01 < found["gpu"][0].mean() < 0.6 and torch.equal(found["gpu"][0], found["reference"][0])
    assert len(found["gpu"][1]) == len(found["reference"][1]) >= 4
    for got, want in zip(found["gpu"][1], found["reference"][1], strict=True):
        close(got, want, kind.__name__)


@pytest.mark.parametrize(
    ("name", "dtype", "lengths", "places"),
    [
        ("lif", torch.float32, None, 3),
        ("alif", torch.float64, [9, 0, 4], 12),
        ("alif", torch.bfloat16, None, 1),
    ],
)
def test_delayed_recurrent_parity(
    name: str, dtype: torch.dtype, lengths: list[int] | None, places: int
) -> None:
    case, n, steps = CASES[name], 24, 9
    arithmetic = torch.float32 if dtype in HALF else dtype
    ends = None if lengths is None else torch.tensor(lengths)
    o = draw(case, steps, shape=(n,), dtype=dtype)
    weight, late = dyadic(n, n).to(arithmetic), dyadic(places, n, seed=3).to(arithmetic)
    before = (dyadic(places, 3, n, seed=2) > 0.2).to(arithmetic)
    mask = None if places == 3 else 1.25 * (dyadic(3, n, seed=4) > -0.2).to(arithmetic)
    if ends is not None:
        o.x[torch.arange(steps).unsqueeze(1) >= ends] = float("nan")

    def run(engine: str, x: Tensor, state: Sequence[Tensor], coefs: Sequence[Tensor]) -> Any:
        *coefs, w, kernel, first = coefs
        y, (*final, last) = recurrent_scan(
            case.dynamics,
            x,
            state,
            coefs,
            case.surrogate,
            Delayed(w, kernel, first, mask),
            previous=first[-1],
            engine=engine,
            lengths=ends,
        )
        return y, (final[0] + 0.5 * last, *final[1:])

    compare(run, o._replace(coefs=[*o.coefs, weight, late, before]), ends)


def test_recurrent_products_stay_float32_under_autocast() -> None:
    case, o = CASES["lif"], draw(CASES["lif"], 4, shape=(16,))
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)) / 4
    want, _ = recurrent_scan(case.dynamics, o.x, o.state, o.coefs, case.surrogate, weight, engine="gpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, (v, last) = recurrent_scan(
            case.dynamics, o.x, o.state, o.coefs, case.surrogate, weight, engine="gpu"
        )
    assert torch.equal(got, want) and v.dtype == last.dtype == torch.float32


def test_recurrent_callable_is_refused() -> None:
    case, o = CASES["lif"], draw(CASES["lif"], 2, shape=(4,))
    with pytest.raises(EngineError, match="reference"):
        recurrent_scan(case.dynamics, o.x, o.state, o.coefs, case.surrogate, lambda s: s, engine="gpu")
