"""Large CPU tensors from memory that is used again.

A fresh tensor of many megabytes comes from the operating system page by page, and every first touch of a page is a fault: for a
scan of 16 MiB sequences that took twice as long as the arithmetic. The kernels therefore take their outputs from a small pool,
as CUDA's caching allocator does: a buffer goes back to the pool when the last tensor that uses it is gone (tensors share it by
reference count, so a result is never overwritten while anyone holds it), and buffers are backed by huge pages where the system
offers them. The pool keeps no more idle than the program once used at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import operator
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes below which torch's own allocator is used: it serves small blocks without faults."""

_UNIT = 2 << 20  # a huge page


class _Pool:
    def __init__(self) -> None:
        self.idle: list[np.ndarray] = []  # the longest idle first
        self.idle_bytes = self.used_bytes = self.peak_bytes = 0
        self.lock = threading.RLock()  # a finaliser may run inside take()
        self.process = os.getpid()

    def take(self, size: int) -> np.ndarray:
        with self.lock:
            for i in range(len(self.idle) - 1, -1, -1):
                if self.idle[i].nbytes == size:
                    self.idle_bytes -= size
                    self._count(size)
                    return self.idle.pop(i)
        if hasattr(mmap, "MAP_PRIVATE"):
            # private: a forked child gets copies, never the parent's tensors
            area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            area = mmap.mmap(-1, size)
        self._count(size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages: ordinary ones do
                area.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(area, dtype=np.uint8)

    def _count(self, size: int) -> None:
        with self.lock:
            self.used_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def give(self, buffer: np.ndarray) -> None:
        if os.getpid() != self.process:
            return  # a forked child drops what it inherited; the lock may have been held at the fork
        with self.lock:
            size = buffer.nbytes
            self.used_bytes -= size
            self.idle.append(buffer)
            self.idle_bytes += size
            while self.idle_bytes > self.peak_bytes:
                self.idle_bytes -= self.idle.pop(0).nbytes

    def clear(self) -> None:
        with self.lock:
            self.idle.clear()
            self.idle_bytes = 0


_pool = _Pool()


def _fresh_pool() -> None:
    # a forked child must not write into pages whose bookkeeping another thread may have held half-done
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_pool)


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised contiguous CPU tensor, from the pool when it is large.

    Example:
        >>> from spiketide.kernels.memory import empty
        >>> a = empty((1024, 1024))
        >>> address = a.data_ptr()
        >>> del a
        >>> empty((1024, 1024)).data_ptr() == address
        True

    Args:
        shape: of the tensor.
        dtype: of the tensor.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    pool = _pool
    buffer = pool.take(-(-size // _UNIT) * _UNIT)
    # the storage keeps this view alive and nothing else does: when it goes, the buffer is free
    view = buffer[:size].view()
    tensor = torch.from_numpy(view)
    weakref.finalize(view, pool.give, buffer).atexit = False
    del view
    # a tensor of its own on that storage: a view could not be changed in place once autograd has it
    strides = list(itertools.accumulate(reversed(tuple(shape)[1:]), func=operator.mul, initial=1))[::-1]
    return torch.empty(0, dtype=dtype, device="cpu").set_(tensor.untyped_storage(), 0, tuple(shape), strides)


def empty_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape and dtype of ``x``; pooled on the CPU."""
    if x.device.type != "cpu":
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return empty(x.shape, x.dtype)


def release() -> None:
    """Give the idle memory of the pool back to the system."""
    _pool.clear()
