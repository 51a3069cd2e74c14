"""The event-driven projection against the matrix product, and the choice between them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from spiketide.errors import EngineError
from spiketide.kernels import project, projection, projection_cpu
from spiketide.kernels.projection import choose, dense_cost, event_cost, last_engine


def sparse(rows, n_in, density, *, graded=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, n_in, generator=g, dtype=torch.float64) < density).to(dtype)
    return x * torch.randn(rows, n_in, generator=g, dtype=dtype) if graded else x


def gradients(x, weight, bias, cotangent, **how):
    """Output, and gradients of input, weight and bias, of one projection."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = project(*leaves, **how)
    (y * cotangent).sum().backward()
    return [y.detach()] + [t.grad for t in leaves if t is not None]


def parameters(n_in, n_out, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_in, n_out, generator=g, dtype=dtype).t() / n_in**0.5
    return weight, torch.randn(n_out, generator=g, dtype=dtype)


def assert_same(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(b.abs().max()))
        assert float((a.double() - b.double()).abs().max()) <= tolerance * scale


CASES = [
    # rows, n_in, n_out, density, graded
    (37, 70, 33, 0.05, False),
    (37, 70, 33, 0.05, True),
    (64, 128, 64, 0.0, False),
    (300, 130, 100, 0.01, False),
    (300, 64, 256, 0.2, True),
    (50, 40, 129, 1.0, False),
    (50, 40, 129, 1.0, True),
    (1, 65, 1, 0.5, True),
    (9, 1, 20, 0.5, False),
    (1100, 30, 300, 0.1, True),  # several blocks of rows and tiles of columns in the weight gradient
]


@pytest.mark.parametrize("rows,n_in,n_out,density,graded", CASES)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_both_ways_equal_the_float64_product(rows, n_in, n_out, density, graded, dtype, tolerance):
    x = sparse(rows, n_in, density, graded=graded, dtype=dtype)
    if density == 0.5:
        x[0, 0] = 2.0  # something to see in the smallest cases
    weight, bias = parameters(n_in, n_out, dtype)
    cotangent = torch.randn(rows, n_out, dtype=dtype, generator=torch.Generator().manual_seed(2))
    exact = gradients(x.double(), weight.double(), bias.double(), cotangent.double(), engine="dense")
    for engine in ("dense", "event"):
        got = gradients(x, weight, bias, cotangent, engine=engine)
        assert last_engine() == engine
        assert all(t.dtype == dtype for t in got)
        assert_same(got, exact, tolerance)


def test_tiles_of_a_wide_weight(monkeypatch):
    monkeypatch.setattr(projection_cpu, "TILE_BYTES", 64 * 4 * 50)
    monkeypatch.setattr(projection_cpu, "GRADIENT_BLOCK_BYTES", 64 * 4 * 32)
    x, (weight, bias) = sparse(200, 50, 0.1, graded=True), parameters(50, 203)
    cotangent = torch.randn(200, 203, generator=torch.Generator().manual_seed(2))
    exact = gradients(x.double(), weight.double(), bias.double(), cotangent.double(), engine="dense")
    assert_same(gradients(x, weight, bias, cotangent, engine="event"), exact, 3e-6)


def test_empty_rows_and_rows_of_all_ones_give_bias_and_sum():
    weight, bias = parameters(100, 10)
    x = torch.zeros(3, 100)
    x[1] = 1.0
    y = project(x, weight, bias, engine="event")
    assert torch.equal(y[0], bias) and torch.equal(y[2], bias)
    torch.testing.assert_close(y[1], weight.sum(1) + bias)
    assert torch.equal(project(x, weight, engine="event")[0], torch.zeros(10))


def test_more_inputs_than_sixteen_bits_can_name():
    n_in = (1 << 16) + 100
    x = torch.zeros(4, n_in)
    x[torch.arange(4), torch.tensor([0, 65535, 65536, n_in - 1])] = 1.0
    weight, bias = parameters(n_in, 3)
    cotangent = torch.ones(4, 3)
    got = gradients(x, weight, bias, cotangent, engine="event")
    assert_same(got, gradients(x, weight, bias, cotangent, engine="dense"), 1e-6)


def test_nan_and_infinite_inputs_are_events():
    weight, bias = parameters(70, 5)
    x = torch.zeros(3, 70)
    x[0, 3], x[1, 69] = float("nan"), float("inf")
    y = project(x, weight, bias, engine="event")
    assert y[0].isnan().all() and y[1].isinf().all() and torch.equal(y[2], bias)


def test_axes_strides_and_expanded_gradients():
    weight, bias = parameters(48, 20)
    base = sparse(12 * 7, 48, 0.2).view(7, 12, 48)
    x = base.transpose(0, 1)  # batch-first data seen time-first
    rows_together = weight.contiguous()  # the other storage order
    for w in (weight, rows_together, torch.nn.Parameter(weight)):
        y = project(x, w, bias, engine="event")
        torch.testing.assert_close(y, functional.linear(x, weight, bias))
    strided = torch.zeros(5, 96)[:, ::2].copy_(base.reshape(-1, 48)[:5])
    torch.testing.assert_close(
        project(strided, weight, engine="event"), functional.linear(strided.contiguous(), weight)
    )
    leaf = weight.clone().requires_grad_()
    project(x, leaf, bias, engine="event").sum().backward()  # its gradient is one number, expanded
    want = weight.clone().requires_grad_()
    functional.linear(x, want, bias).sum().backward()
    torch.testing.assert_close(leaf.grad, want.grad)


def test_no_gradient_that_nobody_wants():
    weight, bias = parameters(32, 16)
    x = sparse(20, 32, 0.2)
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.clone().requires_grad_(n) for t, n in zip((x, weight, bias), needs, strict=True)]
        project(*leaves, engine="event").square().sum().backward()
        assert [t.grad is not None for t in leaves] == list(needs)
    with torch.no_grad():
        assert not project(x, weight.clone().requires_grad_(), bias, engine="event").requires_grad


def test_gradcheck_in_float64():
    x = sparse(6, 5, 0.5, graded=True, dtype=torch.float64)
    weight, bias = parameters(5, 4, torch.float64)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, b: project(x, w, b, engine="event"), (weight, bias))
    # An input that stays nonzero: at zero the lists would change under the finite differences (and should).
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: project(x, weight, bias, engine="event"), (x,))


def test_differentiating_the_event_way_twice_is_refused():
    weight = parameters(8, 4)[0].requires_grad_()
    (g,) = torch.autograd.grad(
        project(sparse(6, 8, 0.5), weight, engine="event").square().sum(), weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_results_do_not_depend_on_the_number_of_threads():
    x, (weight, bias) = sparse(1500, 200, 0.07, graded=True), parameters(200, 300)
    x[700:] *= sparse(800, 200, 0.1, seed=5)  # uneven: the chunks of the threads are of different sizes
    cotangent = torch.randn(1500, 300, generator=torch.Generator().manual_seed(2))
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(gradients(x, weight, bias, cotangent, engine="event"))
    finally:
        torch.set_num_threads(before)
    y, _, gw, _ = range(4)  # the input gradient is torch's own product
    assert torch.equal(results[0][y], results[1][y]) and torch.equal(results[0][gw], results[1][gw])


def test_ones_give_the_same_bits_whether_known_to_be_binary_or_not():
    x, (weight, bias) = sparse(40, 90, 0.1), parameters(90, 70)
    graded = x.clone()
    graded[39, 0] = 0.5
    a, b = (project(z, weight, bias, engine="event")[:39] for z in (x, graded))
    assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------ the choice


def test_the_library_chooses_by_density_and_both_sides_agree():
    weight, bias = parameters(512, 512)
    cotangent = torch.randn(2000, 512, generator=torch.Generator().manual_seed(2))
    taken = []
    for density in (0.05, 0.9):
        x = sparse(2000, 512, density)
        got = gradients(x, weight, bias, cotangent)
        taken.append(last_engine())
        assert_same(got, gradients(x, weight, bias, cotangent, engine="dense"), 3e-6)
    assert taken == ["event", "dense"]


def test_either_side_of_the_switch_gives_the_same():
    rows, n_in, n_out = 2000, 256, 256
    weight, bias = parameters(n_in, n_out)
    order = torch.randperm(rows * n_in, generator=torch.Generator().manual_seed(0))

    def with_events(events):
        x = torch.zeros(rows * n_in)
        x[order[:events]] = 1.0
        return x.view(rows, n_in)

    low, high = 0, rows * n_in  # bisect to the last count of events that still chooses the lists
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if choose(rows, n_in, n_out, middle) == "event" else (low, middle)
    assert 0.05 * rows * n_in < low < 0.5 * rows * n_in
    weight.requires_grad_()
    for events, engine in ((low, "event"), (high, "dense")):
        y = project(with_events(events), weight, bias)
        assert last_engine() == engine
        torch.testing.assert_close(y, functional.linear(with_events(events), weight, bias))


def test_graded_input_is_recognised_from_a_sample(monkeypatch):
    def never(*arguments):
        raise AssertionError("dense input was counted in full")

    monkeypatch.setattr(projection_cpu, "find", never)
    weight, _ = parameters(512, 512)
    project(torch.rand(2000, 512), weight)
    assert last_engine() == "dense"
    with pytest.raises(AssertionError, match="in full"):
        project(sparse(2000, 512, 0.05), weight)


def test_small_products_are_dense():
    weight, _ = parameters(20, 10)
    project(torch.zeros(4, 20), weight)
    assert last_engine() == "dense"
    assert project(torch.zeros(0, 3, 20), weight).shape == (0, 3, 10)


def test_costs_are_monotone():
    sizes = (8000, 512, 256)
    for gradient in (False, True):
        events = [event_cost(*sizes, e, gradient=gradient) for e in range(0, 8000 * 512, 100_000)]
        assert all(a < b for a, b in pairwise(events))
        for axis in range(3):
            larger = tuple(2 * n if i == axis else n for i, n in enumerate(sizes))
            assert event_cost(*larger, 1e5, gradient=gradient) >= event_cost(*sizes, 1e5, gradient=gradient)
            assert dense_cost(*larger, gradient=gradient) > dense_cost(*sizes, gradient=gradient)


# ---------------------------------------------------------------------------------- where it is linear


def test_unknown_and_impossible_engines_are_refused():
    weight, _ = parameters(8, 4)
    with pytest.raises(EngineError, match="did you mean 'dense'"):
        project(torch.zeros(2, 8), weight, engine="dens")
    with pytest.raises(EngineError, match="bfloat16"):
        project(torch.zeros(2, 8).bfloat16(), weight.bfloat16(), engine="event")
    with pytest.raises(EngineError, match="meta"):
        project(torch.zeros(2, 8, device="meta"), weight, engine="event")


def test_other_dtypes_devices_and_transforms_take_the_linear_function():
    weight, bias = parameters(64, 16)
    x = sparse(50, 64, 0.1)
    assert project(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert project(x.to("meta"), weight.to("meta")).shape == (50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = project(x, weight, bias)
        assert y.dtype == torch.bfloat16 and torch.equal(y, functional.linear(x, weight, bias))

    def loss(w, row):
        return project(row, w, bias).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    leaf = weight.clone().requires_grad_()
    loss(leaf, x).backward()
    torch.testing.assert_close(per_sample.sum(0), leaf.grad)


def test_checkpointing_recomputes_the_same():
    weight, bias = parameters(96, 64)
    x = sparse(60, 96, 0.1)
    grads = []
    for again in (False, True):
        w = weight.clone().requires_grad_()

        def f(x, w=w):
            return project(x, w, bias, engine="event").relu()

        y = torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False) if again else f(x)
        y.square().sum().backward()
        grads.append(w.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("engine", [None, "event"])
def test_compiled_graphs_without_a_break(engine):
    weight, bias = parameters(64, 48)
    cotangent = torch.randn(5, 4, 48, generator=torch.Generator().manual_seed(2))

    def step(x, w, b):
        return (project(x * 1.0, w, b, engine=engine) * cotangent).sum()

    leaves = [
        sparse(20, 64, 0.1).view(5, 4, 64).requires_grad_(),
        weight.requires_grad_(),
        bias.requires_grad_(),
    ]
    want = torch.autograd.grad(step(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(step, backend="aot_eager", fullgraph=True)(*leaves), leaves)
    assert last_engine() == (engine or "dense")
    assert_same(got, want, 1e-6)
    assert got[1].stride() == weight.stride()


def test_the_operators_keep_what_they_promise_to_torch():
    weight, bias = parameters(64, 48)
    x = sparse(20, 64, 0.1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for engine in ("dense", "event"):
        how = "" if engine == "dense" else engine
        torch.library.opcheck(
            torch.ops.spiketide.project, (x, weight.clone().requires_grad_(), bias, how), test_utils=tests
        )
        torch.library.opcheck(
            torch.ops.spiketide.project_weight_gradient, (x, torch.randn(20, 48), how), test_utils=tests
        )


def test_saved_memory_is_that_of_the_lists():
    saved = []

    def pack(t):
        saved.append(t.numel() * t.element_size())
        return t

    x, (weight, bias) = sparse(4000, 512, 0.05), parameters(512, 512)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        project(x, weight.requires_grad_(), bias, engine="event")
    assert sum(saved) == 4 * int(x.sum()) + 8 * 4001  # a tenth of the input's 8 MB


def test_lists_hold_every_nonzero_once_in_order():
    x = sparse(33, 150, 0.3, graded=True)
    starts, columns, values = projection.list_events(x, 10, engine="event")
    rows = np.repeat(np.arange(33), np.diff(starts))
    want = np.nonzero(x.numpy())
    assert np.array_equal(rows, want[0]) and np.array_equal(columns, want[1])
    assert np.array_equal(values, x.numpy()[want])
    assert projection.list_events(x.sign().abs(), 10, engine="event").values.numel() == 0
