"""The pool: memory comes back, results are never shared, forked children get copies."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading

import pytest
import torch

from spiketide.kernels import memory


@pytest.fixture(autouse=True)
def own_pool(monkeypatch):
    monkeypatch.setattr(memory, "_pool", memory._Pool())


MIB = 1 << 18  # float32 elements of a MiB


def test_a_buffer_is_used_again_only_when_the_last_tensor_is_gone():
    a = memory.empty((4, MIB))
    address = a.data_ptr()
    part = a[1:, ::2]  # shares the memory
    del a
    gc.collect()
    b = memory.empty((4, MIB))
    assert b.data_ptr() != address
    part.fill_(3.0)
    b.fill_(7.0)
    assert bool((part == 3.0).all())
    known = {address, b.data_ptr()}
    del part, b
    gc.collect()
    assert memory.empty((4, MIB)).data_ptr() in known


def test_small_tensors_are_left_to_torch():
    memory.empty((10,))
    assert memory._pool.used_bytes == 0


def test_dtypes_and_shapes():
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16):
        x = memory.empty((3, MIB), dtype)
        assert x.dtype == dtype and x.shape == (3, MIB) and x.is_contiguous()
        x.fill_(2)
        assert int(x.sum(dtype=torch.float64)) == 6 * MIB
    like = memory.empty_like(torch.zeros(MIB, 4).t())
    assert like.shape == (4, MIB) and like.is_contiguous()


def test_idle_memory_is_bounded_and_old_sizes_make_room():
    for k in range(2, 20):  # every length another size, as with sequences of many lengths
        x = memory.empty((k, MIB))
        del x
        gc.collect()
    pool = memory._pool
    assert 0 < pool.idle_bytes <= pool.peak_bytes
    assert pool.idle_bytes == sum(b.nbytes for b in pool.idle)
    assert pool.used_bytes == 0
    memory.release()
    assert pool.idle_bytes == 0 and not pool.idle


def _child(x, pipe):
    # by NumPy: torch's own thread pool does not survive a fork
    x.numpy()[:] = 7.0  # must stay in the child
    y = memory.empty((8, MIB))
    y.numpy()[:] = 5.0
    pipe.send((float(x[0, 0]), float(y[0, 0])))
    del x, y
    gc.collect()
    pipe.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_gets_copies_and_does_not_wait_for_a_lock():
    x = memory.empty((8, MIB))
    x.fill_(1.0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(False)
    taken, done = threading.Event(), threading.Event()

    def hold():
        with memory._pool.lock:
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)  # a lock held by a thread that the child does not have
    thread.start()
    taken.wait(60)
    process = context.Process(target=_child, args=(x, theirs))
    process.start()
    theirs.close()
    done.set()
    thread.join()
    assert ours.poll(60)
    assert ours.recv() == (7.0, 5.0)
    process.join(60)
    assert process.exitcode == 0
    assert bool((x == 1.0).all())
