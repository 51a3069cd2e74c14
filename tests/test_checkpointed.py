"""Checkpointed: the plain run, forward and backward, in less memory; what it records; what it refuses."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fires, assert_near, assert_same, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spiketide.checkpointed
from spiketide import (
    ALIF,
    LIF,
    AxonalDelay,
    BatchNorm,
    Bidirectional,
    Checkpointed,
    Dense,
    Dropout,
    Layer,
    LeakyIntegrator,
    Recurrent,
    Residual,
    Sequential,
)
from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.losses import SpikeRate
from spiketide.neurons import Neuron
from spiketide.probe import record
from spiketide.types import leaves

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def network(dropout: float = 0.0, engine: str | None = None) -> Sequential:
    torch.manual_seed(1)
    learn = ("tau_mem", "tau_adapt")
    hidden = ALIF(8, tau_mem=6.0, tau_adapt=20.0, threshold=0.1, learn=learn, engine=engine)
    return Sequential(
        Dense(4, 8),
        Recurrent(hidden, Dense(8, 8)),
        Dropout(dropout),
        AxonalDelay(8, 5),
        Residual(Sequential(Dense(8, 8), LIF(8, tau_mem=6.0, threshold=0.3, engine=engine))),
        Dense(8, 3),
        LeakyIntegrator(3, tau_mem=5.0, engine=engine),
    )


def sequence(steps: int = 30, batch: int = 3) -> Tensor:
    return 1.5 * torch.rand(steps, batch, 4, generator=torch.Generator().manual_seed(2))


def gradients(model: Layer, x: Tensor, *, seed: int = 5, state: Any = None, **options: Any) -> Any:
    """Outputs, final state, and the gradients of input, first state and all parameters, through outputs and final state."""
    torch.manual_seed(seed)
    given = x.clone().requires_grad_()
    begin = None if state is None else spiketide.types.map_state(lambda s: s.detach().requires_grad_(), state)
    with interpreted():
        y, end = model(given, begin, **options)
        generator = torch.Generator().manual_seed(9)
        loss = sum(
            (torch.randn(out.shape, generator=generator) * out).sum()
            for out in (y, *leaves(end))
            if out.requires_grad
        )
        wanted = [given, *(leaves(begin) if begin else []), *model.parameters()]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return y.detach(), [s.detach() for s in leaves(end)], grads


def assert_equal_runs(got: Any, want: Any, rtol: float = 1e-6) -> None:
    assert_same(got[0], want[0], "outputs")
    for a, b in zip(got[1], want[1], strict=True):
        assert_same(a, b, "final state")
    assert any(g is not None and bool(g.any()) for g in want[2])
    for a, b in zip(got[2], want[2], strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert_near(a, b, rtol, "a gradient")


# -------------------------------------------------------------------------------------------------- the same network


@pytest.mark.parametrize("chunk", [1, 4, 7, 29, 30, 100, None])
@pytest.mark.parametrize("engine", [None, "reference"])
def test_it_is_the_plain_run(chunk: int | None, engine: str | None) -> None:
    model, x = network(engine=engine), sequence()
    want = gradients(model, x)
    assert_fires(record_of(model, x)["1.neuron"])
    assert_equal_runs(gradients(Checkpointed(model, chunk), x), want)


@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (1, 29), (1, 4), (4, 1)])
def test_chunks_of_a_single_row_agree_to_rounding(batch: int, chunk: int) -> None:
    """One row is multiplied in another way than many; from four on the products are the same."""
    torch.manual_seed(0)
    model = Sequential(Dense(120, 64), LeakyIntegrator(64), Dense(64, 10))  # no spikes, which would round
    x = torch.rand(32 if chunk == 4 else 30, batch, 120)
    (got, _), (want, _) = Checkpointed(model, chunk)(x), model(x)
    if batch * min(stop - start for start, stop in Checkpointed(model, chunk).ranges(len(x))) >= 4:
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def record_of(model: Layer, x: Tensor) -> dict[str, Tensor]:
    with record(model) as records, torch.no_grad(), interpreted():
        model(x)
    return dict(records)


@pytest.mark.parametrize("lengths", [[30, 0, 11], [7, 8, 9], [0, 0, 0]])
def test_lengths(lengths: list[int]) -> None:
    model, x = network(), sequence()
    want = gradients(model, x, lengths=torch.tensor(lengths))
    got = gradients(Checkpointed(model, 7), x, lengths=torch.tensor(lengths))
    assert_same(got[0], want[0])
    for a, b in zip(got[1], want[1], strict=True):
        assert_same(a, b, "final state")
    for a, b in zip(got[2], want[2], strict=True):
        assert_near(a, b, 1e-6, "a gradient")
        assert bool(torch.isfinite(a).all())


def test_it_goes_on_from_a_state_and_hands_it_on() -> None:
    model, x = network(), sequence(45)
    with interpreted():
        _, middle = model(x[:15])
    want = gradients(model, x[15:], state=middle)
    assert_equal_runs(gradients(Checkpointed(model, 6), x[15:], state=middle), want)
    # truncated: two windows by hand, each checkpointed
    whole = Checkpointed(model, 4)
    with interpreted():
        y1, state = whole(x[:15])
        y2, _ = whole(x[15:], spiketide.detach(state))
        want_y, _ = model(x)
    assert_same(torch.cat([y1, y2]), want_y)


@given(steps=st.integers(0, 40), chunk=st.one_of(st.none(), st.integers(1, 50)), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_any_length_in_any_chunks(steps: int, chunk: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    model = Recurrent(ALIF(3, tau_mem=6.0, threshold=0.1), Dense(3, 3)).double()
    x = torch.rand(steps, 2, 3, dtype=torch.float64).requires_grad_()
    ranges = Checkpointed(model, chunk).ranges(steps)
    assert [t for a, b in ranges for t in range(a, b)] == list(range(steps))
    assert all(b - a == ranges[0][1] - ranges[0][0] for a, b in ranges[:-1])
    found = []
    for layer in (model, Checkpointed(model, chunk)):
        with interpreted():
            y, (end, _) = layer(x)
            loss = (y * torch.arange(1.0, steps + 1).view(-1, 1, 1)).sum() + sum(
                s.square().sum() for s in end
            )
            found.append((y, end, torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)))
    (want, want_end, want_grads), (got, got_end, got_grads) = found
    assert_same(got.detach(), want.detach())
    for a, b in zip(got_end, want_end, strict=True):
        assert_same(a.detach(), b.detach())
    for a, b in zip(got_grads, want_grads, strict=True):
        if b is not None:
            assert_near(a, b, 1e-12)


def test_chunks_of_about_the_square_root() -> None:
    layer = Checkpointed(LIF(3))
    for steps in (1, 2, 3, 10, 784, 785, 1568, 3136, 100_000):
        ranges = layer.ranges(steps)
        size = ranges[0][1]
        assert 0.5 * steps**0.5 <= size <= 1.5 * steps**0.5
        assert ranges[-1][1] - ranges[-1][0] > 0
    assert layer.ranges(784)[0] == (0, 28) and len(layer.ranges(784)) == 28 and layer.ranges(0) == []


def test_a_list_is_a_sequence_of_layers() -> None:
    model = Checkpointed([Dense(4, 3), LIF(3), nn.Tanh()], 5)
    assert isinstance(model.layer, Sequential) and len(model.layer) == 3
    y, state = model(sequence())
    assert y.shape == (30, 3, 3) and len(state) == 3
    assert isinstance(Checkpointed(nn.Linear(4, 2), 5)(sequence())[0], Tensor)
    assert "chunk=5" in repr(model)


def test_the_mask_of_dropout_is_one_for_all_chunks_and_the_same_the_second_time() -> None:
    model, x = network(dropout=0.5).train(), sequence()
    want = gradients(model, x, seed=3)
    got = gradients(Checkpointed(model, 7).train(), x, seed=3)
    assert_equal_runs(got, want)
    other = gradients(Checkpointed(model, 7).train(), x, seed=4)
    assert not torch.equal(other[0], want[0]), "another seed draws another mask"


class Noise(Layer):
    """Draws random numbers at every step."""

    def forward(self, x: Tensor, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        return x * torch.rand_like(x), ()


def test_random_numbers_are_the_same_the_second_time_and_the_generator_stays_where_it_was() -> None:
    x = sequence().requires_grad_()
    torch.manual_seed(0)
    y, _ = Checkpointed(Noise(), 7)(x)
    drawn = (y / x).detach()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_near(grad, drawn, 1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_retained_graph_may_be_run_back_more_than_once() -> None:
    model, x = Checkpointed(network(), 7), sequence().requires_grad_()
    with interpreted():
        y, _ = model(x)
        first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert_same(first, second)
    assert bool(first.any())


def test_copies_and_pickles() -> None:
    model, x = Checkpointed(network(), 7), sequence()
    want = gradients(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal_runs(gradients(other, x), want, 0.0)
    assert set(model.state_dict()) == {f"layer.{key}" for key in network().state_dict()}


def test_checkpointed_inside_checkpointed_and_around_a_checkpointed_scan() -> None:
    model, x = network(), sequence()
    want = gradients(model, x)
    assert_equal_runs(gradients(Checkpointed(Sequential(*(Checkpointed(m, 3) for m in model)), 10), x), want)
    model[1].neuron.checkpoint = 3
    assert_equal_runs(gradients(Checkpointed(model, 10), x), want)


# ------------------------------------------------------------------------------------------------- what is run again


def counting(model: nn.Module) -> tuple[list[tuple[int, bool]], Callable[[], None]]:
    """(steps, whether it was a second run) of every forward of a module."""
    seen: list[tuple[int, bool]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].shape[0], spiketide.checkpointed.recomputing()))
    )
    return seen, handle.remove


def test_every_chunk_is_run_once_more_in_the_backward_from_the_last_to_the_first() -> None:
    model = Checkpointed([Dense(4, 3), LeakyIntegrator(3)], 8)
    seen, _ = counting(model.layer)
    x = sequence()
    y, _ = model(x)
    assert seen == [(8, False), (8, False), (8, False), (6, False)]
    seen.clear()
    y.sum().backward()
    assert seen == [(6, True), (8, True), (8, True), (8, True)]
    assert not spiketide.checkpointed.recomputing()
    seen.clear()
    with torch.no_grad():
        model(x)
    assert seen == [(30, False)], "without gradients there is nothing to save"


class Wide(Layer):
    """Plain torch arithmetic, all of whose intermediate values autograd keeps; narrow at both ends."""

    def forward(self, x: Tensor, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        v = x.new_zeros(x.shape[1], 256) if state is None else state[0]
        out = []
        for xt in x.unbind(0):
            v = torch.tanh(0.9 * v + xt) * torch.sigmoid(v)
            out.append(v.mean(1, keepdim=True))
        return torch.stack(out), (v,)


def peak(layer: Layer, steps: int) -> int:
    """Bytes of torch's allocations at the worst moment of a forward and backward."""
    x = torch.rand(steps, 2, 1).requires_grad_()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        y, _ = layer(x)
        y.sum().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > steps
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_memory_grows_with_the_square_root_of_the_steps() -> None:
    plain = [peak(Wide(), steps) for steps in (256, 1024)]
    ours = [peak(Checkpointed(Wide()), steps) for steps in (256, 1024)]
    assert 3.5 < plain[1] / plain[0] < 4.5, plain
    assert 1.6 < ours[1] / ours[0] < 2.6, ours
    assert ours[1] < plain[1] / 8


# ------------------------------------------------------------------------------------------------------------ records


def test_records_are_whole_and_not_doubled_by_the_backward() -> None:
    plain, x = network(), sequence()
    want = record_of(plain, x)
    model = Sequential(Checkpointed(plain, 7), Dense(3, 3), LIF(3, tau_mem=4.0, threshold=0.2))
    with record(model) as records, interpreted():
        y, _ = model(x)
        names = [f"0.layer.{name}" for name in want]
        assert list(records) == [*names, "2"]
        kept = {name: out.clone() for name, out in records.items()}
        y.sum().backward()
        assert list(records) == [*names, "2"] == list(records.modules)
    for name, out in want.items():
        assert_same(records[f"0.layer.{name}"].detach(), out)
        assert records.modules[f"0.layer.{name}"] is plain.get_submodule(name)
    for name, out in kept.items():
        assert_same(records[name].detach(), out.detach(), "the backward changed a record")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_a_penalty_on_the_records_trains_the_network() -> None:
    found = []
    for chunk in (None, 7):
        plain = network().double()  # sums over chunks round apart
        model: Layer = plain if chunk is None else Checkpointed(plain, chunk)
        with record(model) as records, interpreted():
            y, _ = model(sequence().double())
            loss = y.square().mean() + SpikeRate(target=0.0, weight=1.0)(records.spikes())
            loss.backward()
        found.append((loss.detach(), [p.grad for p in plain.parameters()]))
    assert_near(found[1][0], found[0][0], 1e-13)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        assert_near(a, b, 1e-13)


class Twice(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.neuron = LIF(4, tau_mem=6.0, threshold=4.0)

    def forward(self, x: Tensor, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        first, second = (None, None) if state is None else state
        y, first = self.neuron(x, first)
        z, second = self.neuron(y + x, second)
        return z, (first, second)


class Leaky(Layer):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        trace = (state[0] if state else torch.zeros_like(x[0])) * 0.5 + x[0]
        return -trace.unsqueeze(0), (trace,)


@pytest.mark.parametrize("grad", [True, False])
def test_records_of_a_neuron_used_twice_and_of_one_run_step_by_step(grad: bool) -> None:
    for plain in (Twice(), Recurrent(LIF(4, tau_mem=6.0, threshold=2.0), Leaky())):
        want = record_of(plain, sequence())
        with record(plain := Checkpointed(plain, 8)) as records, interpreted(), torch.set_grad_enabled(grad):
            plain(sequence().requires_grad_())
        assert [name.removeprefix("layer.") for name in records] == list(want)
        for a, b in zip(records.values(), want.values(), strict=True):
            assert_fires(b)
            assert_same(a.detach(), b)


def test_records_of_other_kinds_and_of_nested_ones() -> None:
    plain, x = network(), sequence()
    kinds = (Layer,)
    with record(plain, kinds) as want, interpreted():
        plain(x)
    model = Checkpointed(Sequential(*(Checkpointed(m, 3) for m in plain)), 10)
    with record(model, Neuron) as records, interpreted():
        y, _ = model(x)
    spikes = {n: out for n, out in want.items() if isinstance(want.modules[n], Neuron)}
    assert list(records) == ["layer.1.layer.neuron", "layer.4.layer.layer.1", "layer.6.layer"]
    for a, b in zip(records.values(), spikes.values(), strict=True):
        assert_same(a.detach(), b.detach())
    model = Checkpointed(plain, 7)
    with record(model, kinds) as records, interpreted():
        y, _ = model(x)
    assert list(records)[-1] == "Checkpointed" and records["Checkpointed"] is y
    assert {n.removeprefix("layer.") for n in list(records)[:-2]} == set(list(want)[:-1])
    for name, out in list(want.items())[:-1]:
        assert_same(records[f"layer.{name}"].detach(), out.detach())


# ------------------------------------------------------------------------------------------------- pages and recipes


def test_the_page_runs_as_it_stands() -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "train_on_long_sequences.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)
    assert all(p.grad is not None and bool(p.grad.any()) for p in names["network"].parameters())


def test_a_recipe_can_name_it() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Layer)
    parts = [
        {"class_path": "spiketide.Dense", "init_args": {"n_in": 4, "n_out": 3}},
        {"class_path": "spiketide.LIF", "init_args": {"n": 3}},
    ]
    given = {"class_path": "spiketide.Checkpointed", "init_args": {"layer": parts, "chunk": 9}}
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the old name until 4.5x
    network = build(parser.parse_object({"network": given})).network
    assert isinstance(network, Checkpointed) and network.chunk == 9 and len(network.layer) == 2
    assert network(sequence())[0].shape == (30, 3, 3)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_what_needs_the_whole_sequence_is_refused() -> None:
    inner = Recurrent(LIF(4), Dense(4, 4))
    with pytest.raises(ParameterError, match="Bidirectional needs it whole.*checkpoint the layers inside it"):
        Checkpointed([Dense(4, 4), Bidirectional(inner)])
    outside = Bidirectional(Checkpointed(inner, 7))  # as the message says
    inside = Bidirectional(inner)
    inside.load_state_dict({k.replace("layer.", ""): v for k, v in outside.state_dict().items()})
    assert_equal_runs(gradients(outside, sequence()), gradients(inside, sequence()))
    with pytest.raises(ParameterError, match="AxonalDelay with a tail.*use tail=0"):
        Checkpointed(Sequential(AxonalDelay(4, 3, tail=2)))
    for bad in (0, -3, 2.0, True, "7"):
        with pytest.raises(ParameterError, match="a chunk of 1 or more steps, or None"):
            Checkpointed(LIF(3), bad)  # type: ignore[arg-type]
    for thing in (None, 3, torch.relu):
        with pytest.raises(ParameterError, match="Checkpointed expected a layer or a list of layers, got"):
            Checkpointed(thing)  # type: ignore[arg-type]


def test_batch_norm_is_refused_while_it_takes_statistics() -> None:
    model = Checkpointed([Dense(4, 4), BatchNorm(4), LIF(4)], 7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ParameterError, match=r"cannot train through BatchNorm.*set it to eval\(\)"):
        model(sequence())
    model.layer[1].eval()
    found = []
    for layer in (model.layer, model):
        y, _ = layer(sequence())
        found.append((y.detach(), torch.autograd.grad(y.sum(), list(model.parameters()))))
    assert_same(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert_near(a, b, 1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Doubles(Layer):
    def forward(self, x: Tensor, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, Any]:
        return torch.cat([x, x]), ()


def test_a_layer_of_other_steps_and_wrong_input_are_refused() -> None:
    x = sequence().requires_grad_()
    with pytest.raises(ShapeError, match="expected 7 steps out of a chunk of as many, got 14"):
        Checkpointed(Doubles(), 7)(x)
    model = Checkpointed(network(), 7)
    with pytest.raises(ShapeError, match="lengths from 0 to T = 30, got 4 to 31"):
        model(x, lengths=torch.tensor([4, 31, 5]))
    with pytest.raises(ShapeError, match="Sequential expected a tuple of the states of its 7 layers"):
        model(x, ())


def test_where_a_nan_was_is_told_in_steps_of_the_sequence() -> None:
    x = sequence().clone()
    x[17, 1, 2] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"first at step 3 of sample 1.*steps count from 14, where this chunk"
    ):
        Checkpointed(LIF(4, learn=("tau_mem",)), 7)(x)
    x[17, 1, 2], x[2, 1, 2] = 0.0, float("nan")
    with pytest.raises(NonFiniteError, match="first at step 2 of sample 1") as error:
        Checkpointed(LIF(4, learn=("tau_mem",)), 7)(x)
    assert "chunk" not in str(error.value)
