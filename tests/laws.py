"""The laws of a layer, each a function that takes any layer and an input and raises AssertionError when it is broken.

They take the layer, so that the tests of the tests can hand them layers that are wrong on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from helpers import assert_fires, assert_near
from torch import Tensor, nn

from spiketide import Layer, detach
from spiketide.neurons import Neuron
from spiketide.probe import record
from spiketide.types import leaves, map_state

RTOL = 2e-6  # torch's matrix products of other sizes sum in another order; neurons are equal to the bit

Run = Callable[..., tuple[Tensor, Any]]


def seeded(layer: Layer, *arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    """Run with the same random numbers every time (dropout masks)."""
    torch.manual_seed(5)
    return layer(*arguments, **options)


def near(got: Tensor, want: Tensor, what: str) -> None:
    """Equal up to rounding; spikes (values 0 and 1 only) exactly."""
    values = want.detach().unique()
    binary = values.numel() <= 2 and bool(((values == 0) | (values == 1)).all())
    assert_near(
        got.detach(), want.detach(), 0.0 if binary else RTOL if want.dtype == torch.float32 else 1e-12, what
    )


def near_state(got: Any, want: Any, what: str) -> None:
    """The same tree with the same values."""
    pairs = list(zip(leaves(got), leaves(want), strict=True))
    for k, (a, b) in enumerate(pairs):
        near(a, b, f"{what}, state tensor {k}")


def draw(x: Tensor, seed: int) -> Tensor:
    """Other values of the same kind as ``x``: drawn from its own, so that nothing leaves its range."""
    generator = torch.Generator().manual_seed(seed)
    flat = x.flatten()
    return flat[torch.randint(0, flat.numel(), x.shape, generator=generator)]


# ------------------------------------------------------------------------------------------------------------- firing


def fires(layer: Layer, x: Tensor) -> None:
    """Every spiking neuron inside fires, and not all the time."""
    with torch.no_grad(), record(layer) as records:
        seeded(layer, x)
    spikes: dict[str, list[Tensor]] = {}
    for name, y in records.spikes().items():
        spikes.setdefault(name.split("#")[0], []).append(y)
    wanted = [n for n, m in layer.named_modules() if isinstance(m, Neuron) and m.emits_spikes]
    assert len(spikes) == len(wanted), f"of the neurons {wanted} only {list(spikes)} ran"
    for name, outputs in spikes.items():
        assert_fires(torch.cat(outputs), f"{type(layer).__name__}: neuron {name!r}")


# ----------------------------------------------------------------------------------------------------- the three laws


def streaming(layer: Layer, x: Tensor) -> None:
    """Chunks with carried state equal the whole sequence, however it is cut."""
    steps = x.shape[0]
    with torch.no_grad():
        whole, end = seeded(layer, x)
        for sizes in ([1, 0, 3, steps - 4], [0, steps], [steps - 1, 1, 0], [1] * steps):
            outputs, state = [], None
            for k, part in enumerate(x.split(sizes)):
                y, state = seeded(layer, part, state) if k == 0 else layer(part, state)
                assert y.shape[0] == part.shape[0], (
                    f"a chunk of {part.shape[0]} steps came out with {y.shape[0]}"
                )
                outputs.append(y)
            near(torch.cat(outputs), whole, f"streamed in chunks of {sizes}")
            near_state(state, end, f"streamed in chunks of {sizes}")


def causality(layer: Layer, x: Tensor) -> None:
    """The future never changes the past, neither its values nor their gradients; but it does change the future."""
    cut = x.shape[0] // 2
    other = x.clone()
    other[cut:] = draw(x[cut:], 11)
    assert not torch.equal(other, x)
    with torch.no_grad():
        before, after = seeded(layer, x)[0], seeded(layer, other)[0]
    assert not torch.equal(before[cut:], after[cut:]), (
        "the future changed nothing at all: this input tests nothing"
    )
    assert torch.equal(before[:cut], after[:cut]), "the future changed the past"
    given = x.clone().requires_grad_()
    y, _ = seeded(layer, given)
    (grad,) = torch.autograd.grad(y[:cut].sum(), given)
    assert bool(torch.isfinite(grad).all())
    assert float(grad[cut:].abs().max()) == 0.0, "the past's gradient reaches the future"


def batch_independence(layer: Layer, x: Tensor) -> None:
    """A sample does not depend on its neighbours, nor on its place, nor on there being any."""
    batch = x.shape[1]
    with torch.no_grad():
        whole, end = seeded(layer, x)
        other = x.clone()
        other[:, 1:] = draw(x[:, 1:], 12)
        y, state = seeded(layer, other)
        near(y[:, 0], whole[:, 0], "with other neighbours")
        near_state(map_state(lambda s: s[0], state), map_state(lambda s: s[0], end), "with other neighbours")
        for b in range(batch):
            y, state = seeded(layer, x[:, b : b + 1])
            near(y[:, 0], whole[:, b], f"sample {b} alone")
            near_state(
                map_state(lambda s: s[0], state), map_state(lambda s, b=b: s[b], end), f"sample {b} alone"
            )
        turned, _ = seeded(layer, x.flip(1))
        near(turned.flip(1), whole, "in another order")


# ------------------------------------------------------------------------------------------------------------- purity


def _tensors(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor reachable from a module's attributes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):
        yield from _tensors(vars(value), path, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}", seen)
    elif isinstance(value, (tuple, list, set)):
        for k, item in enumerate(value):
            yield from _tensors(item, f"{path}[{k}]", seen)


def _snapshot(layer: Layer) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {path: t.detach().clone() for path, t in _tensors(layer, "self", set())}
    plain = {}
    for name, module in layer.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_buffers", "_modules")) and not isinstance(
                value, (Tensor, nn.Module)
            ):
                plain[f"{name}.{key}"] = repr(value)
    return tensors, plain


def purity(layer: Layer, x: Tensor) -> None:
    """A forward (and its backward) changes nothing in the module, its input, or the state it was given."""
    tensors, plain = _snapshot(layer)
    given, kept = x.clone().requires_grad_(), x.clone()
    y, state = seeded(layer, given)
    if y.requires_grad:
        torch.autograd.grad(y.sum(), given, allow_unused=True)
    carried, copied = detach(state), map_state(lambda s: s.detach().clone(), state)
    layer(x, carried)
    tensors_after, plain_after = _snapshot(layer)
    assert tensors_after.keys() == tensors.keys(), (
        f"tensors kept in the module: {tensors_after.keys() ^ tensors.keys()}"
    )
    for path, tensor in tensors.items():
        assert torch.equal(tensors_after[path], tensor), f"{path} was changed by a forward"
    assert plain_after == plain, f"attributes changed: {set(plain_after.items()) ^ set(plain.items())}"
    assert torch.equal(x, kept) and torch.equal(given.detach(), kept), "the input was written to"
    for a, b in zip(leaves(carried), leaves(copied), strict=True):
        assert torch.equal(a, b), "the state that was given was written to"
    again, _ = seeded(layer, x)
    assert torch.equal(again, y), "the second call gives something else than the first"


# ------------------------------------------------------------------------------------------------------------ lengths


def lengths_for(x: Tensor) -> Tensor:
    """Full, none, one, and something between; as many as the batch has samples."""
    steps = x.shape[0]
    return torch.tensor(([steps, 0, 1, steps // 2, steps - 1] * x.shape[1])[: x.shape[1]])


def lengths(layer: Layer, x: Tensor) -> None:
    """A padded batch equals each sample alone; past the end the output is 0 and the state stays."""
    steps, sizes = x.shape[0], lengths_for(x)
    with torch.no_grad():
        y, end = layer(x, lengths=sizes)
        assert y.shape[0] == steps
        for b, size in enumerate(sizes.tolist()):
            assert not bool(y[size:, b].any()), f"sample {b} of length {size} is not 0 past its end"
            alone, alone_end = layer(x[:size, b : b + 1])
            near(y[:size, b], alone[:, 0], f"sample {b} of length {size}")
            near_state(
                map_state(lambda s, b=b: s[b], end), map_state(lambda s: s[0], alone_end), f"sample {b}"
            )
        full, full_end = layer(x, lengths=torch.full((x.shape[1],), steps, dtype=torch.int32))
        free, free_end = layer(x)
        near(full, free, "with every length full")
        near_state(full_end, free_end, "with every length full")


def lengths_streaming(layer: Layer, x: Tensor) -> None:
    """Chunks of a padded batch, each with what is left of its lengths, equal the whole; a sample of length 0 stands still."""
    sizes = lengths_for(x)
    with torch.no_grad():
        whole, end = seeded(layer, x, lengths=sizes)
        cut = x.shape[0] // 3
        first, state = seeded(layer, x[:cut], lengths=sizes.clamp(max=cut))
        rest, state = layer(x[cut:], state, lengths=(sizes - cut).clamp(min=0))
        near(torch.cat([first, rest]), whole, "streamed with lengths")
        near_state(state, end, "streamed with lengths")
        still, frozen = layer(x, state, lengths=torch.zeros_like(sizes))
        assert not bool(still.any()), "a sample of length 0 gave an output"
        for a, b in zip(leaves(frozen), leaves(state), strict=True):
            assert torch.equal(a, b), "a sample of length 0 changed its state"


def padding(layer: Layer, x: Tensor) -> None:
    """What stands in the padding, even NaN, changes no output, no state and no gradient, and gets the gradient 0."""
    sizes = lengths_for(x)
    past = torch.arange(x.shape[0]).unsqueeze(1) >= sizes
    outcomes = []
    for garbage in (0.0, 1e30, math.nan, math.inf):
        given = x.clone()
        given[past] = garbage
        given.requires_grad_()
        y, state = seeded(layer, given, lengths=sizes)
        assert bool(torch.isfinite(y).all()), f"{garbage} in the padding came out"
        assert not bool(y.detach()[past].any()), f"{garbage} in the padding: the output there is not 0"
        loss = (
            y.square().sum()
            + y.sum()
            + sum(leaf.square().sum() for leaf in leaves(state) if leaf.is_floating_point())
        )
        parameters = [p for p in layer.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [given, *parameters], allow_unused=True)
        assert grads[0] is not None
        assert not bool(grads[0][past].any()), f"{garbage} in the padding got a gradient"
        outcomes.append(
            [y.detach(), *(leaf.detach() for leaf in leaves(state)), *(g for g in grads if g is not None)]
        )
    for outcome in outcomes[1:]:
        for a, b in zip(outcome, outcomes[0], strict=True):
            assert bool(torch.isfinite(a).all()), "garbage in the padding made a gradient NaN"
            near(a, b, "with garbage in the padding")


# ------------------------------------------------------------------------------------------- states, dtypes, gradients


def state_tree(layer: Layer, x: Tensor) -> None:
    """The state is a tuple tree of tensors with a batch axis; detached it goes on with the same values, without a graph."""
    given = x.clone().requires_grad_()
    y, state = seeded(layer, given)
    assert isinstance(state, tuple), f"the state is a {type(state).__name__}, not a tuple"
    for leaf in leaves(state):
        assert isinstance(leaf, Tensor), f"the state holds a {type(leaf).__name__}"
        assert leaf.shape[:1] == x.shape[1:2], (
            f"a state tensor {tuple(leaf.shape)} does not begin with the batch"
        )
    again, again_end = layer(x, state)
    cut, cut_end = layer(x, detach(state))
    near(cut, again, "after detach")
    near_state(cut_end, again_end, "after detach")
    for leaf in leaves(detach(state)):
        assert not leaf.requires_grad
    saved = map_state(lambda s: s.detach().numpy().copy(), state)  # out of torch and back
    loaded = map_state(torch.from_numpy, saved)
    near(layer(x, loaded)[0], again, "from a saved state")
    for smaller in leaves(map_state(lambda s: s[:1], state)):
        assert smaller.shape[0] == 1


def float64(layer: Layer, x: Tensor) -> None:
    """In float64 everything is float64, and differs from float32 by rounding only."""
    import copy

    wide = copy.deepcopy(layer).double()
    with torch.no_grad():
        y32, end32 = seeded(layer, x)
        y, end = seeded(wide, x.double())
    assert y32.dtype == torch.float32 and y.dtype == torch.float64, f"outputs {y32.dtype} and {y.dtype}"
    for leaf32, leaf in zip(leaves(end32), leaves(end), strict=True):
        assert leaf32.dtype == torch.float32 and leaf.dtype == torch.float64, (
            f"states {leaf32.dtype} and {leaf.dtype}"
        )
    if y.numel() and layer.training is False:
        # a spike at the threshold may fall on either side; most do not
        assert float(((y32 - y).abs() > 1e-4 * y.abs().max()).double().mean()) < 0.02


def layout(layer: Layer, x: Tensor) -> None:
    """Inputs and states need not be contiguous."""
    strange = x.permute(*range(x.dim() - 1, -1, -1)).contiguous().permute(*range(x.dim() - 1, -1, -1))
    sliced = torch.stack([x, x + 1], -1)[..., 0]
    assert not strange.is_contiguous() and not sliced.is_contiguous()
    with torch.no_grad():
        want, end = seeded(layer, x)
        for other in (strange, sliced):
            y, state = seeded(layer, other)
            near(y, want, "of a strided input")
            near_state(state, end, "of a strided input")
        want, _ = layer(x, end)
        y, _ = layer(x, map_state(lambda s: torch.stack([s, s + 1], -1)[..., 0], end))
        near(y, want, "of a strided state")


def gradients(layer: Layer, x: Tensor) -> None:
    """The gradient reaches the input through the outputs and, where there is one, through the state, also across chunks."""
    given = x.clone().requires_grad_()
    y, state = seeded(layer, given)
    (through_y,) = torch.autograd.grad(y.square().sum() + y.sum(), given, retain_graph=True)
    assert float(through_y.abs().max()) > 0, "no gradient comes through the outputs"
    assert bool(torch.isfinite(through_y).all())
    carried = [leaf for leaf in leaves(state) if leaf.requires_grad]
    if leaves(state) and layer.training is False:
        assert carried, "the state has no gradient"
    if not carried:
        return
    (through_state,) = torch.autograd.grad(sum(s.square().sum() + s.sum() for s in carried), given)
    assert float(through_state.abs().max()) > 0, "no gradient comes through the state"
    cut = x.shape[0] // 2
    first, second = x[:cut].clone().requires_grad_(), x[cut:].clone()
    y1, state = seeded(layer, first)
    y2, _ = layer(second, state)
    (across,) = torch.autograd.grad(y2.square().sum() + y2.sum(), first, retain_graph=True)
    assert float(across.abs().max()) > 0, "no gradient comes back through a carried state"
    (chunked,) = torch.autograd.grad(y1.square().sum() + y1.sum() + y2.square().sum() + y2.sum(), first)
    assert_near(chunked, through_y[:cut], 1e-5, "the gradient of two chunks against that of the whole")


def derivative(layer: Layer, x: Tensor) -> None:
    """The backward that a neuron runs is the derivative of its step as torch takes it."""
    from spiketide.scan import scan

    for neuron in (m for m in layer.modules() if isinstance(m, Neuron)):
        plain = neuron.dynamics._replace(step_vjp=None)
        found = []
        for run in (
            lambda i, n=neuron: n(i),
            lambda i, n=neuron, d=plain: scan(d, i, None, n.coefs(), n.surrogate, engine="reference"),
        ):
            given = (
                draw(x, 3)
                .flatten()[: 12 * 2 * math.prod(neuron.shape)]
                .view(12, 2, *neuron.shape)
                .requires_grad_()
            )
            y, state = run(given)
            cotangent = torch.arange(1.0, 13.0, dtype=y.dtype).view(-1, *[1] * (y.dim() - 1))
            loss = (cotangent * y).sum() + sum(s.square().sum() for s in leaves(state))
            operands = [given, *(p for p in neuron.parameters() if p.requires_grad)]
            found.append(torch.autograd.grad(loss, operands, allow_unused=True))
        for a, b in zip(*found, strict=True):
            if b is not None:
                assert a is not None
                assert_near(a, b, 1e-5, f"a gradient of {type(neuron).__name__}")
