"""Scans under torch.compile, in other processes, and in forked children."""

from __future__ import annotations

import concurrent.futures
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fires, assert_near, assert_same
from torch import Tensor, nn

from spiketide import ALIF, LIF, Dense, LeakyIntegrator, Recurrent, Sequential
from spiketide.scan.dynamics import register
from spiketide.surrogate import ATan

ROOT = Path(__file__).parents[2]


def network(**options: Any) -> Sequential:
    torch.manual_seed(3)
    model = Sequential(
        Dense(6, 8),
        LIF(8, tau_mem=6.0, threshold=0.5, learn=("tau_mem",), **options),
        Recurrent(LIF(8, tau_mem=6.0, threshold=0.5, **options), Dense(8, 8)),
        Dense(8, 3),
        LeakyIntegrator(3, tau_mem=6.0),
    )
    with torch.no_grad():
        for layer in (model[0], model[2].synapse):
            layer.weight.mul_(3)
    return model


def run(model: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    y, _ = model(x, **options)
    (y.square().sum() + y.sum()).backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model: nn.Module, compiled: Any, x: Tensor, **options: Any) -> None:
    want, want_grads = run(model, x, **options)
    model.zero_grad()
    y, _ = compiled(x, **options)
    (y.square().sum() + y.sum()).backward()
    assert_near(y.detach(), want, 1e-5, "outputs")
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, grad in want_grads.items():
        assert grads[name] is not None, f"{name} has no gradient when compiled"
        assert_near(grads[name], grad, 1e-4, name)


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# what torch says while it imports its compiler is not ours to fix
quiet = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


@quiet
def test_a_model_is_one_graph(fresh_compiler: None) -> None:
    model = network()
    x = torch.rand(10, 3, 6)
    assert_fires(model[1](model[0](x)[0])[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compare(model, compiled, x)
    compare(model, compiled, x, lengths=torch.tensor([10, 4, 0]))
    with torch.no_grad():
        assert_near(compiled(x)[0], model(x)[0], 1e-5)
        y, state = compiled(x[:4])
        rest, _ = compiled(x[4:], state)
        assert_near(torch.cat([y, rest]), model(x)[0], 1e-5)


@quiet
def test_checkpoints_and_half_inputs_compile(fresh_compiler: None) -> None:
    model = network(checkpoint=4)
    compare(model, torch.compile(model, fullgraph=True, backend="aot_eager"), torch.rand(10, 3, 6))
    layer = LIF(6, tau_mem=6.0)
    x = torch.rand(10, 3, 6, dtype=torch.bfloat16)
    y, (v,) = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    want, (v2,) = layer(x)
    assert_same(y, want)
    assert_same(v, v2)


@quiet
def test_another_length_does_not_compile_again_for_ever(fresh_compiler: None) -> None:
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    layer = ALIF(6, threshold=0.1)
    compiled = torch.compile(layer, fullgraph=True, backend=count, dynamic=None)
    with torch.no_grad():
        for steps in (5, 9, 17, 33, 64, 3):
            x = torch.rand(steps, 3, 6)
            assert_same(compiled(x)[0], layer(x)[0])
    assert graphs <= 2, f"six lengths made {graphs} graphs"


@quiet
@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler"
)
def test_inductor(fresh_compiler: None) -> None:
    model = network()
    compare(model, torch.compile(model, fullgraph=True), torch.rand(10, 3, 6))


@quiet
def test_the_operators_keep_their_contract() -> None:
    # schema, fake kernels (shapes, strides, dtypes) and aliasing, as torch itself checks them
    key = register(LIF(4, learn=("tau_mem",)).dynamics, ATan(2.0))
    x, v, lengths = torch.rand(6, 3, 4), torch.zeros(3, 4), torch.tensor([6, 2, 0])
    coefs, w = [torch.tensor(0.9), torch.full((4,), 0.8)], torch.rand(4, 4)
    checks = ("test_schema", "test_faketensor")
    forward, backward = torch.ops.spiketide.scan.default, torch.ops.spiketide.scan_backward.default
    for needs in ((), (True, True, True), (False, True, False)):
        for checkpoint in (0, 4):
            if not needs and checkpoint:
                continue
            given = (key, "cpu", x, [v], coefs, lengths, needs, checkpoint)
            torch.library.opcheck(forward, given, test_utils=checks)
            if needs:
                out = forward(*given)
                rest = (
                    key,
                    "cpu",
                    torch.rand(6, 3, 4),
                    [out[1]],
                    x,
                    [v],
                    coefs,
                    out[2:],
                    lengths,
                    needs,
                    checkpoint,
                )
                torch.library.opcheck(backward, rest, test_utils=checks)
    forward = torch.ops.spiketide.recurrent_scan.default
    for save, checkpoint in ((False, 0), (True, 0), (True, 4)):
        given = (key, "cpu", x, [v], torch.zeros(3, 4), coefs, w, lengths, (True, False), save, checkpoint)
        torch.library.opcheck(forward, given, test_utils=checks)


# -------------------------------------------------------------------------------------------------- other processes


def in_child(payload: bytes, queue: Any) -> None:
    layer, x, cotangent = pickle.loads(payload)
    y, _ = layer(x.requires_grad_())
    y.backward(cotangent)
    queue.put([y.detach().numpy(), x.grad.numpy()])


def spawned(method: str, payload: bytes) -> list[Any]:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=in_child, args=(payload, queue))
    process.start()
    try:
        return queue.get(timeout=120)
    finally:
        process.join(timeout=30)
        assert process.exitcode == 0, f"the {method}ed child ended with {process.exitcode}"


def test_a_pickled_model_runs_in_a_new_process() -> None:
    # a new interpreter that has never seen the neurons: the state dict of modules must bring them along
    model, x = network(), torch.rand(10, 3, 6)
    code = f"""
        import pickle, sys, torch
        model, x = pickle.loads(sys.stdin.buffer.read())
        y, _ = model(x)
        y.sum().backward()
        sys.stdout.buffer.write(pickle.dumps((y.detach(), model[0].weight.grad, {os.getpid()})))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=pickle.dumps((model, x)),
        capture_output=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    y, grad, _ = pickle.loads(done.stdout)
    model.zero_grad()
    want, _ = model(x)
    want.sum().backward()
    assert_same(y, want.detach())
    assert_near(grad, model[0].weight.grad, 1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_runs_without_aborting(two_threads: None) -> None:
    # GNU OpenMP ends a forked process that starts threads: a DataLoader worker that runs a layer would die. (Torch's own sums
    # and products hang in such a child where they take threads, so there are none in it.)
    big, x = LIF(600), torch.rand(60, 10, 600)
    want, _ = big(x)  # large enough for Numba to start its threads, in this process and in the child
    y, grad = spawned("fork", pickle.dumps((big, x, torch.ones_like(x))))
    assert_same(torch.from_numpy(y), want.detach())
    assert float(torch.from_numpy(grad).abs().max()) > 0
    large, _ = big(torch.rand(60, 10, 600))  # and the parent's threads still run
    assert large.shape == (60, 10, 600)


class Encoded(torch.utils.data.Dataset):
    """Samples that a layer makes in the worker, as an encoder or a preprocessing neuron would."""

    def __init__(self) -> None:
        self.layer = LIF(600, tau_mem=6.0)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.manual_seed(index)
        with torch.no_grad():
            return self.layer(torch.rand(500, 1, 600))[0].mean((0, 1))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_data_loader_worker_runs_a_layer(two_threads: None) -> None:
    data = Encoded()
    want = torch.stack([data[i] for i in range(4)])  # in this process first, which starts the threads
    got = torch.cat(list(torch.utils.data.DataLoader(data, batch_size=2, num_workers=1)))
    assert_same(got, want)


def test_threads_of_python_share_kernels() -> None:
    # also the first use, when each thread finds the kernel not yet compiled
    layer = LIF(600, tau_mem=6.0, threshold=0.9)
    x = torch.rand(60, 10, 600)

    def job(_: int) -> tuple[Tensor, Tensor]:
        given = x.clone().requires_grad_()
        y, _ = layer(given)
        return y.detach(), torch.autograd.grad(y.sum(), given)[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(job, range(12)))
    assert_fires(outcomes[0][0])
    for y, grad in outcomes[1:]:
        assert_same(y, outcomes[0][0])
        assert_same(grad, outcomes[0][1])


def test_a_model_is_saved_and_loaded_with_torch() -> None:
    model, x = network(), torch.rand(10, 3, 6)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert not torch.equal(other(x)[0], model(x)[0])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(other(x)[0], model(x)[0])
