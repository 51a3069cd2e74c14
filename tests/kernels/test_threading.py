"""Compiled kernels on torch's threads, and without threads in forked processes."""

import logging
import os
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest
import torch

from spiketide.kernels import threading
from spiketide.kernels.threading import Kernel, kernel


@kernel(cache=False)  # this module has no importable name for the cache
def scale(x, factor):
    for i in numba.prange(x.shape[0]):
        x[i] *= factor


def test_a_kernel_runs_and_leaves_the_settings_of_numba_alone():
    x = np.arange(5.0)
    scale(x, 2.0)
    assert x.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert numba.threading_layer() == "omp"
    before, torchs = numba.get_num_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert threading.threads() == 1
        scale(x, 0.5)
        assert numba.get_num_threads() == before
    finally:
        torch.set_num_threads(torchs)
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_decorated_with_options_and_serial():
    @kernel(parallel=False, cache=False)
    def add(a, b):
        return a + b

    assert isinstance(add, Kernel) and add(1, 2) == 3 and add.options["nogil"]
    assert not threading.serial_only()


def test_serial_and_parallel_variants_have_their_own_cache_entries():
    names = {scale.dispatcher(p).py_func.__qualname__ for p in (True, False)}
    assert names == {"scale", "scale_serial"}


FORKS = """
import os, sys, torch
import spiketide.kernels.threading as threading
from spiketide.kernels import project
print("numba" in sys.modules)

torch.manual_seed(0)
x = (torch.rand(300, 100) < 0.1).float()
w = torch.randn(100, 70, requires_grad=True)

def both():
    w.grad = None
    y = project(x, w.t(), engine="event")
    y.square().sum().backward()
    return torch.cat([y.detach().flatten(), w.grad.flatten()]).numpy().tobytes()

def in_child():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # as a worker of a DataLoader does
        with os.fdopen(write, "wb") as pipe:
            pipe.write(both())
            pipe.write(bytes([threading.serial_only()]))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    print(os.waitpid(pid, 0)[1], data[-1])
    return data[:-1]

early = in_child()
here = both()
late = in_child()
print(early == here, late == here, threading.serial_only())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_numba_comes_late_and_forked_children_compute_the_same():
    """Forked before the threads ran a child may use threads; forked after, it does without them."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    imported, early, late, same = done.stdout.splitlines()
    assert imported == "False"
    assert early == "0 0" and late == "0 1"
    assert same == "True True False"


def test_a_poor_threading_layer_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(numba, "threading_layer", lambda: "workqueue")
    monkeypatch.setattr(threading, "_layer_known", False)
    with caplog.at_level(logging.WARNING):
        scale(np.ones(2), 1.0)
        scale(np.ones(2), 1.0)
    assert [r.name for r in caplog.records] == ["spiketide.kernels.threading"]
    assert "OpenMP is missing" in caplog.text


def test_it_is_said_once_that_kernels_are_compiled(tmp_path):
    code = """
        import logging, sys
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        import torch
        from spiketide import LIF
        for n in (LIF(3), LIF(4, reset="hard")):
            n(torch.rand(5, 2, n.shape[0]).requires_grad_())[0].sum().backward()
    """
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "XDG_CACHE_HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.count("compiling kernels"))
    assert said == [1, 0], "once, and not where the cache has them"
