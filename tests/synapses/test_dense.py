"""All-to-all synapses."""

import copy
import io

import pytest
import torch
from torch.nn import functional

from spiketide.errors import ParameterError, ShapeError
from spiketide.kernels.projection import last_engine
from spiketide.synapses import Dense


def spikes(*shape, density=0.05, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density).float()


@pytest.mark.parametrize("density,engine", [(0.05, "event"), (0.95, "dense")])
def test_equals_a_linear_layer_on_both_sides_of_the_switch(density, engine):
    torch.manual_seed(0)
    dense, linear = Dense(300, 260), torch.nn.Linear(300, 260)
    linear.load_state_dict(dense.state_dict())
    x = spikes(100, 16, 300, density=density)
    y, state = dense(x)
    assert state == () and last_engine() == engine
    torch.testing.assert_close(y, linear(x), rtol=1e-5, atol=1e-6)
    y.square().mean().backward()
    linear(x).square().mean().backward()
    for ours, theirs in zip(dense.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_initial_weights_are_uniform_up_to_the_root_of_fan_in():
    torch.manual_seed(0)
    dense = Dense(400, 500)
    for parameter in dense.parameters():
        assert 0.99 < float(parameter.detach().abs().max()) * 20 <= 1.0
    assert abs(float(dense.weight.detach().std()) * 20 - 3**-0.5) < 0.005
    assert list(dict(dense.named_parameters())) == ["weight", "bias"] and Dense(3, 2, bias=False).bias is None


def test_weights_of_an_input_stay_together_in_memory():
    dense = Dense(30, 20)

    def stored_so(weight):
        return weight.shape == (20, 30) and weight.t().is_contiguous()

    assert stored_so(dense.weight) and stored_so(copy.deepcopy(dense).weight)
    file = io.BytesIO()
    torch.save(dense.state_dict(), file)
    file.seek(0)
    other = Dense(30, 20)
    other.load_state_dict(torch.load(file))
    assert stored_so(other.weight) and torch.equal(other.weight, dense.weight)
    assert stored_so(other.double().weight)
    optimiser = torch.optim.Adam(dense.parameters())
    dense(spikes(4, 3, 30))[0].sum().backward()
    optimiser.step()
    assert stored_so(dense.weight) and stored_so(dense.weight.grad)
    assert stored_so(optimiser.state[dense.weight]["exp_avg"])


def test_weights_stored_otherwise_work_too():
    dense, plain = Dense(200, 150), torch.randn(150, 200)
    dense.load_state_dict({"weight": plain, "bias": torch.zeros(150)}, assign=True)
    x = spikes(200, 8, 200)
    y, _ = dense(x)
    assert last_engine() == "event"
    torch.testing.assert_close(y, functional.linear(x, plain))
    y.sum().backward()
    torch.testing.assert_close(dense.weight.grad, x.sum((0, 1)).expand(150, 200))


def test_silent_past_the_end_of_a_sample():
    dense = Dense(5, 4)
    x = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 2, 0])
    y, _ = dense(x, lengths=lengths)
    want = dense(x)[0]
    for b, n in enumerate(lengths):
        assert torch.equal(y[:n, b], want[:n, b]) and not y[n:, b].any()
    y.sum().backward()
    assert dense.bias.grad.tolist() == [8.0] * 4


def test_a_chunk_at_a_time_equals_the_whole():
    dense, x = Dense(12, 7), spikes(9, 2, 12, density=0.3)
    first, state = dense(x[:4])
    second, _ = dense(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), dense(x)[0])


def test_bad_sizes_and_inputs_are_refused():
    for sizes in ((0, 3), (3, -1), (2.5, 3), (True, 3)):
        with pytest.raises(ParameterError, match="positive integer"):
            Dense(*sizes)
    dense = Dense(5, 4)
    with pytest.raises(ShapeError, match="time axis"):
        dense(torch.zeros(3, 5))
    with pytest.raises(ShapeError, match="batch-first"):
        dense(torch.zeros(2, 5, 3))
    with pytest.raises(ShapeError, match=r"x\.float"):
        dense(torch.zeros(2, 3, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="lengths"):
        dense(torch.zeros(2, 3, 5), lengths=torch.tensor([1, 2]))
    with pytest.raises(ShapeError, match="state"):
        dense(torch.zeros(2, 3, 5), (torch.zeros(3, 4),))
    assert repr(dense) == "Dense(5, 4, bias=True)"


def test_inside_a_compiled_model():
    torch.manual_seed(0)
    dense, x = Dense(64, 32), spikes(20, 4, 64)

    def loss(x):
        return dense(x)[0].relu().square().sum()

    want = torch.autograd.grad(loss(x), dense.weight)[0]
    got = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(x), dense.weight)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("init", ["xavier_uniform", "xavier_normal", "kaiming_normal", "orthogonal", "zeros"])
def test_weights_begin_as_torch_draws_them(init):
    torch.manual_seed(0)
    dense = Dense(200, 100, init=init)
    assert not dense.bias.any()
    w = dense.weight.detach().clone()
    variance = {"xavier_uniform": 2 / 300, "xavier_normal": 2 / 300, "kaiming_normal": 2 / 200, "zeros": 0.0}
    if init == "orthogonal":
        torch.testing.assert_close(w @ w.T, torch.eye(100), atol=1e-5, rtol=0)
    else:
        assert w.var().item() == pytest.approx(variance[init], rel=0.05)
    if init == "xavier_uniform":
        assert w.abs().max().item() <= (6 / 300) ** 0.5
    dense.reset_parameters()
    assert init == "zeros" or not torch.equal(dense.weight, w)
    assert dense.weight.t().is_contiguous()


def test_an_unknown_init_is_refused():
    with pytest.raises(ParameterError, match="xavier_uniform"):
        Dense(3, 2, init="xavier")
