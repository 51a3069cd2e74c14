"""Compiled kernels beside torch: lazy Numba, one set of threads, safe after a fork.

Use it in a module that is itself imported lazily (it must import Numba for ``prange``)::

    from numba import prange
    from .threading import kernel

    @kernel(parallel=True)                  # compiled at the first call with each signature, cached on disk
    def double(x, y):
        for i in prange(x.shape[0]):
            y[i] = 2.0 * x[i]

    double(x, y)                            # runs on torch.get_num_threads() threads

    f = kernel(function, parallel=False)    # or on a function that was generated

What a :class:`Kernel` takes care of:

- Numba is imported at the first call, not before, and ``cache=True, nogil=True`` are set.
- The threading layer is OpenMP, chosen just before Numba starts its threads (``workqueue``, the default of
  the wheels where TBB is missing, stalls 8-22 ms a call beside torch's own threads). A layer that the user
  named (``NUMBA_THREADING_LAYER``) is left alone. Where OpenMP is missing a warning is logged once.
- The number of threads is torch's, and Numba's own setting is as before afterwards.
- GNU OpenMP kills a process that was forked from one whose threads had started (``DataLoader`` workers).
  There the same function runs compiled without threads. :func:`serial_only` says whether that is so.
- The compiled variants of one function have different qualified names: Numba's disk cache tells functions
  apart by name and line, not by options, and would load the threaded code in the forked child.

The disk cache of a function is renewed when *its* source file changes, not when a function that it calls in
another file does: keep a kernel and its helpers in one file.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any, overload

import torch

SHARED_FROM = 1 << 18
"""Numbers (neuron-steps of a scan) from which a pass is shared among threads; below, waking them costs more than it saves."""

_log = logging.getLogger(__name__)
_serial = False
_layer_known = False


def serial_only() -> bool:
    """Whether this process was forked from one whose Numba threads ran: nothing may run in parallel here."""
    return _serial


def threads() -> int:
    """The number of threads that a parallel kernel runs on: torch's, one after a fork."""
    if _serial:
        return 1
    import numba

    config: Any = numba.config
    return max(1, min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))


def _after_fork_in_child() -> None:
    global _serial
    # Only this private flag says whether Numba's threads run; where a later Numba has lost it, be careful.
    module = sys.modules.get("numba.np.ufunc.parallel")
    if module is not None and getattr(module, "_is_initialized", True):
        _serial = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _choose_layer() -> None:
    """Ask for OpenMP first, unless Numba's threads run already or the user asked for a layer by name."""
    global _layer_known
    import numba

    config: Any = numba.config
    try:
        numba.threading_layer()
    except ValueError:
        if str(config.THREADING_LAYER).lower() == "default":
            config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
        numba.get_num_threads()  # starts the threads
    layer = numba.threading_layer()
    if layer == "workqueue":
        _log.warning(
            "Numba runs its threads with %r: OpenMP is missing, or another layer was asked for or started "
            "first. Results are the same; beside torch's threads each call may stall for milliseconds.",
            layer,
        )
    _layer_known = True


@functools.cache
def _tell_of_compiling() -> None:
    """Say once, before the first kernel that no cache holds, why nothing seems to happen."""
    from numba.core import event

    class Told(event.Listener):
        done = False

        def on_start(self, started: Any) -> None:
            function = started.data["dispatcher"].py_func
            if not self.done and str(function.__module__).startswith("spiketide"):
                self.done = True
                _log.info(
                    "compiling kernels: some seconds for each kind of layer and number, kept for later runs"
                )

        def on_end(self, ended: Any) -> None:
            pass

    event.register("numba:compile", Told())


class Kernel:
    """A function of arrays and numbers that Numba compiles when it is first called; see the module's text.

    Args:
        function: a plain Python function in the subset that Numba compiles; may use ``numba.prange``.
        parallel: run ``prange`` loops on threads.
        options: passed on to ``numba.njit``.
    """

    def __init__(self, function: Callable[..., Any], *, parallel: bool = True, **options: Any) -> None:
        self.function = function
        self.parallel = parallel
        self.options: dict[str, Any] = {"cache": True, "nogil": True, **options}
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self._compiled: dict[bool, Callable[..., Any]] = {}

    def dispatcher(self, parallel: bool) -> Callable[..., Any]:
        """Numba's dispatcher for this function, with or without threads."""
        if parallel not in self._compiled:
            import numba

            _tell_of_compiling()
            function = self.function
            if not parallel:
                function = types.FunctionType(
                    function.__code__,
                    function.__globals__,
                    function.__name__,
                    function.__defaults__,
                    function.__closure__,
                )
                function.__qualname__ = self.function.__qualname__ + "_serial"
                function.__module__ = self.function.__module__
            self._compiled[parallel] = numba.njit(parallel=parallel, **self.options)(function)
        return self._compiled[parallel]

    def alone(self, *arguments: Any) -> Any:
        """Run it on the calling thread only: for work too small to be worth waking the others."""
        return self.dispatcher(False)(*arguments)

    def sized(self, work: int, *arguments: Any) -> Any:
        """Run it on all threads, or on this one when ``work``, the numbers it goes through, is less than :data:`SHARED_FROM`."""
        return (self if work >= SHARED_FROM else self.alone)(*arguments)

    def __call__(self, *arguments: Any) -> Any:
        """Run it, on threads where that is allowed."""
        if _serial or not self.parallel or torch.get_num_threads() == 1:
            # A masked team still waits for its idle threads, which spin: on a busy machine that is 10 ms a call.
            return self.alone(*arguments)
        import numba

        if not _layer_known:
            _choose_layer()
        wanted, before = threads(), numba.get_num_threads()
        if wanted == before:
            return self.dispatcher(True)(*arguments)
        numba.set_num_threads(wanted)
        try:
            return self.dispatcher(True)(*arguments)
        finally:
            numba.set_num_threads(before)


@overload
def kernel(function: Callable[..., Any], *, parallel: bool = True, **options: Any) -> Kernel: ...


@overload
def kernel(
    function: None = None, *, parallel: bool = True, **options: Any
) -> Callable[[Callable[..., Any]], Kernel]: ...


def kernel(
    function: Callable[..., Any] | None = None, *, parallel: bool = True, **options: Any
) -> Kernel | Callable[[Callable[..., Any]], Kernel]:
    """Make a :class:`Kernel` of a function, directly or as a decorator.

    Example:
        >>> import numpy as np
        >>> from spiketide.kernels.threading import kernel
        >>> def total(x):
        ...     s = 0.0
        ...     for i in range(x.shape[0]):
        ...         s += x[i]
        ...     return s
        >>> kernel(total, parallel=False, cache=False)(np.ones(3))
        3.0
    """
    if function is None:
        return lambda f: Kernel(f, parallel=parallel, **options)
    return Kernel(function, parallel=parallel, **options)
