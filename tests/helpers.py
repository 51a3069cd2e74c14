"""Words that the tests of the core share: fixtures that fire, gradients of everything, kernels run by Python."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spiketide.kernels import tiles
from spiketide.kernels.threading import Kernel
from spiketide.scan import Dynamics, recurrent_scan, scan
from spiketide.surrogate import Surrogate

LOWEST_RATE, HIGHEST_RATE = 0.01, 0.60


def assert_fires(y: Tensor, what: str = "the fixture") -> None:
    """A silent (or a saturated) net passes any comparison, so every spiking fixture is asked for its rate first."""
    assert set(y.detach().unique().tolist()) <= {0.0, 1.0}, f"{what} gives no spikes but {y.unique()[:5]}"
    rate = float(y.detach().mean())
    assert LOWEST_RATE <= rate <= HIGHEST_RATE, (
        f"{what} fires at {rate:.1%}: it would pass whatever is computed"
    )


def assert_near(got: Tensor, want: Tensor, rtol: float, what: str = "") -> None:
    """Equal within ``rtol`` of the largest value (single elements may cancel); and neither is NaN."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)} is not {tuple(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: {got.dtype} is not {want.dtype}"
    if not want.numel():
        return
    assert bool(torch.isfinite(want).all()) and bool(torch.isfinite(got).all()), f"{what} is not finite"
    error, scale = float((got - want).detach().abs().max()), float(want.detach().abs().max())
    assert error <= rtol * scale, f"{what}: off by {error:.3g}, the largest value being {scale:.3g}"


def assert_same(got: Tensor, want: Tensor, what: str = "") -> None:
    """Equal to the bit."""
    assert got.dtype == want.dtype and got.shape == want.shape, f"{what}: {got.dtype} {tuple(got.shape)}"
    assert torch.equal(got, want), f"{what}: {int((got != want).sum())} of {want.numel()} values differ"


def tile_product(out: Any, places: Any, i: int, g: Any, w: Any) -> None:
    """What the vector code of that name computes, a row of ``g`` that is not there being anything at all."""
    total = np.zeros((tiles.ROWS, w.shape[1]), w.dtype)
    for j in range(w.shape[0]):
        total[: len(g)] += g[:, j : j + 1] * w[j]
    out[places, i : i + w.shape[1]] = total


def nonzero_bits(array: Any, index: int) -> Any:
    """Bit ``q``: ``array[index + q]`` is not zero."""
    return np.uint64(sum(1 << q for q in range(64) if array[index + q] != 0))


def lowest_bit(bits: Any) -> int:
    """Place of the lowest bit."""
    return (int(bits) & -int(bits)).bit_length() - 1


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run the printed kernels as the plain Python they are, without Numba: the same arithmetic in no compile time.

    This tests the graph, the plan and the printed source; what the compiler makes of them is tested on a few kernels.
    """

    compiled = Kernel.dispatcher

    def dispatcher(self: Kernel, parallel: bool) -> Callable[..., Any]:
        if not self.function.__module__.startswith("spiketide_printed"):
            return compiled(self, parallel)
        # one module for the kernel and the functions printed beside it: they call each other and the vector code by name
        names = dict(self.function.__globals__)
        for k, v in names.items():
            if getattr(v, "__module__", None) == self.function.__module__ and hasattr(v, "py_func"):
                names[k] = types.FunctionType(v.py_func.__code__, names)
        if "prefetch_write" in names:
            names["prefetch_write"] = lambda array, index: (
                None
            )  # an instruction of the processor; it changes no value
        if "flush_tiny" in names:  # how the processor takes denormal numbers
            names["flush_tiny"], names["restore_tiny"] = (lambda: 0), (lambda before: None)
        for name in (
            "tile_product",
            "packed_product",
            "nonzero_bits",
            "lowest_bit",
        ):  # vector code: what it computes, in NumPy
            if name in names:
                names[name] = globals()[name]
        plain = types.FunctionType(self.function.__code__, names)

        def run(*arguments: Any) -> Any:
            with np.errstate(all="ignore"):
                return plain(*arguments)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "dispatcher", dispatcher)
        yield


def leaf(tensor: Tensor, wanted: bool = True) -> Tensor:
    """A fresh leaf with the same values and strides."""
    return tensor.detach().as_strided(tensor.shape, tensor.stride()).requires_grad_(wanted)


class Outcome:
    """Outputs, final state and gradients of one run."""

    def __init__(self, y: Tensor, final: Sequence[Tensor], grads: dict[str, Tensor]) -> None:
        self.y, self.final, self.grads = y, tuple(final), grads


def differentiate(
    run: Callable[[dict[str, Tensor]], tuple[Tensor, Sequence[Tensor]]],
    operands: dict[str, Tensor],
    wanted: Sequence[str] | None = None,
    *,
    seed: int = 1,
) -> Outcome:
    """``run`` on fresh leaves, and the gradients through outputs *and* final state with random cotangents.

    Args:
        run: operands -> (outputs, final state).
        operands: by name.
        wanted: names whose gradients are asked for; ``None``: all.
    """
    chosen = list(operands) if wanted is None else list(wanted)
    given = {name: leaf(tensor, name in chosen) for name, tensor in operands.items()}
    y, final = run(given)
    generator = torch.Generator().manual_seed(seed)
    outputs, cotangents = [], []
    for out in (y, *final):
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        if out.requires_grad:  # a state that a step sets to a number does not on the reference engine
            outputs.append(out)
            cotangents.append(cotangent)
    grads = torch.autograd.grad(outputs, [given[name] for name in chosen], cotangents, allow_unused=True)
    found = {
        name: torch.zeros_like(given[name]) if grad is None else grad
        for name, grad in zip(chosen, grads, strict=True)
    }
    return Outcome(y.detach(), [f.detach() for f in final], found)


def named(x: Tensor, state: Sequence[Tensor], coefs: Sequence[Tensor], **more: Tensor) -> dict[str, Tensor]:
    """Operands of a scan by name."""
    return (
        {"x": x}
        | {f"state{k}": s for k, s in enumerate(state)}
        | {f"coef{k}": c for k, c in enumerate(coefs)}
        | more
    )


def _ordered(given: dict[str, Tensor], kind: str) -> list[Tensor]:
    return [tensor for name, tensor in given.items() if name.startswith(kind)]


def scanned(
    dynamics: Dynamics,
    surrogate: Surrogate,
    operands: dict[str, Tensor],
    engine: str | None,
    wanted: Sequence[str] | None = None,
    **options: Any,
) -> Outcome:
    """:func:`spiketide.scan.scan` with all its gradients; with an operand ``matrix``, the recurrent one."""

    def run(given: dict[str, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        state, coefs = _ordered(given, "state"), _ordered(given, "coef")
        if "matrix" in given:
            return recurrent_scan(
                dynamics,
                given["x"],
                state,
                coefs,
                surrogate,
                given["matrix"],
                previous=given["previous"],
                engine=engine,
                **options,
            )
        return scan(dynamics, given["x"], state, coefs, surrogate, engine=engine, **options)

    return differentiate(run, operands, wanted)


def assert_parity(got: Outcome, want: Outcome, *, rtol: float, bits: bool = True) -> None:
    """Outputs and final state equal (to the bit, if asked), gradients within ``rtol`` of the largest."""
    for what, a, b in [
        ("outputs", got.y, want.y),
        *((f"state {k}", *p) for k, p in enumerate(zip(got.final, want.final, strict=True))),
    ]:
        if bits:
            assert_same(a, b, what)
        else:
            assert_near(a, b, rtol, what)
    assert got.grads.keys() == want.grads.keys()
    for name, grad in want.grads.items():
        assert_near(got.grads[name], grad, rtol, f"gradient of {name}")


def quiet_trainer(**options: Any) -> Any:
    """A ``lightning.Trainer`` on the CPU that trains and does nothing else: no bar, logs, checkpoints, nor validation unless asked."""
    import lightning as L

    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    less = {"accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return L.Trainer(**dict.fromkeys(silent, False), **{**less, **options})
