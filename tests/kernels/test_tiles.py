"""The vector code of the recurrent scans, against NumPy, and the same bits wherever a row or a column stands."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from helpers import assert_fires, assert_near, assert_same, named, scanned
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from spiketide import ALIF, LIF, Dense, Recurrent
from spiketide.kernels import tiles
from spiketide.neurons import Neuron
from spiketide.surrogate import ATan

FLOATS = (np.float32, np.float64)


@njit
def product(out, places, g, strips):  # type: ignore[no-untyped-def]
    for k in range(strips.shape[0]):
        tiles.tile_product(out, places, k * strips.shape[2], g, strips[k])


@njit
def places(array, start):  # type: ignore[no-untyped-def]
    found = np.empty(64, np.int64)
    count = 0
    bits = tiles.nonzero_bits(array, start)
    while bits != np.uint64(0):
        found[count] = tiles.lowest_bit(bits)
        count += 1
        bits &= bits - np.uint64(1)
    return found[:count]


def draw(dtype: type, *shape: int, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def packed(w: NDArray) -> NDArray:
    return tiles.pack(torch.from_numpy(w)).numpy()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("inner", [1, 3, 70])
def test_a_tile_is_the_product_and_writes_nothing_else(dtype: type, inner: int) -> None:
    width, rows = tiles.columns(dtype), tiles.ROWS
    assert width % (16 // np.dtype(dtype).itemsize) == 0 and rows in (6, 8)
    g, w = draw(dtype, rows + 3, inner, seed=1), draw(dtype, inner, 2 * width, seed=2)
    where = np.random.default_rng(5).permutation(rows + 4)[:rows]  # rows of the result in any order
    want = np.full((rows + 4, 2 * width + 5), 7.0, dtype)
    want[where, : 2 * width] = (g[:rows].astype(np.float64) @ w.astype(np.float64)).astype(dtype)
    close = 1e-5 if dtype == np.float32 else 1e-13
    got, plain = np.full_like(want, 7.0), np.full_like(want, 7.0)
    product(got, where, g, packed(w))
    np.testing.assert_allclose(got, want, rtol=0, atol=close)
    untouched = np.setdiff1d(np.arange(rows + 4), where)
    assert (got[untouched] == 7.0).all() and (got[:, 2 * width :] == 7.0).all()
    for k, strip in enumerate(packed(w)):  # what interpreted tests run in its place
        helpers.tile_product(plain, where, k * width, g[:rows], strip)
    np.testing.assert_allclose(plain, want, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 32, 37])
def test_a_matrix_in_strips(dtype: type, n: int) -> None:
    w, width = draw(dtype, 5, n), tiles.columns(dtype)
    strips = packed(w)
    assert strips.shape == (-(-n // width), 5, width) and strips.flags.c_contiguous
    flat = strips.transpose(1, 0, 2).reshape(5, -1)
    assert np.array_equal(flat[:, :n], w) and not flat[:, n:].any()
    assert packed(w[:, :0]).shape == (0, 5, width)


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_element_of_a_tile_does_not_depend_on_its_place(dtype: type) -> None:
    width, rows = tiles.columns(dtype), tiles.ROWS
    own = np.arange(rows)
    g, w = draw(dtype, rows, 70, seed=1), draw(dtype, 70, 3 * width, seed=2)
    whole = np.empty((rows, 3 * width), dtype)
    product(whole, own, g, packed(w))
    order, columns = (
        np.random.default_rng(3).permutation(rows),
        np.random.default_rng(4).permutation(3 * width),
    )
    moved = np.empty_like(whole)
    product(moved, own, np.ascontiguousarray(g[order]), packed(np.ascontiguousarray(w[:, columns])))
    assert np.array_equal(moved, whole[order][:, columns])


@given(st.sets(st.integers(0, 99)), st.integers(0, 36), st.sampled_from(FLOATS))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_places_of_what_is_not_zero(where: set[int], start: int, dtype: type) -> None:
    array = np.zeros(100, dtype)
    array[list(where)] = [0.5 if q % 2 else -1e-30 for q in where]
    array[[q for q in range(100) if q not in where]] = -0.0
    want = sorted(q - start for q in where if start <= q < start + 64)
    assert places(array, start).tolist() == want
    assert int(helpers.nonzero_bits(array, start)) == sum(1 << q for q in want)
    if want:
        assert helpers.lowest_bit(helpers.nonzero_bits(array, start)) == want[0]


def test_nan_is_not_zero() -> None:
    array = np.zeros(64, np.float32)
    array[[3, 63]] = np.nan
    assert places(array, 0).tolist() == [3, 63]


# ----------------------------------------------------------------------------------- the scans that are made of them


def operands(
    neuron: Neuron, batch: int, n: int, dtype: torch.dtype, steps: int = 24
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = (0.25 + 0.5 * normal(steps, batch, n)).to(dtype)
    state = [(0.1 * normal(batch, n).abs()).to(dtype) for _ in neuron.states]
    coefs = [(c.detach().double() * (1 + 0.01 * normal(n).clamp(-1, 1))).to(dtype) for c in neuron.coefs()]
    previous = (normal(batch, n) > 1.3).to(dtype)
    return named(x, state, coefs, matrix=(0.5 * normal(n, n) / n**0.5).to(dtype), previous=previous)


@pytest.mark.parametrize(("batch", "n"), [(3, 70), (9, 128), (17, 37)])
def test_compiled_scans_with_whole_tiles_and_what_is_left_over(batch: int, n: int) -> None:
    neuron = LIF(n, tau_mem=6.0, threshold=0.9, learn=("tau_mem", "threshold")).double()
    given = operands(neuron, batch, n, torch.float64)
    lengths = torch.arange(batch) * 5 % 25
    for options in ({}, {"lengths": lengths}):
        want = scanned(neuron.dynamics, ATan(2.0), given, "reference", **options)
        got = scanned(neuron.dynamics, ATan(2.0), given, "cpu", **options)
        assert_fires(want.y)
        assert_same(got.y, want.y)
        for name, grad in want.grads.items():
            assert bool(grad.any()), name
            assert_near(got.grads[name], grad, 1e-11, name)


@pytest.mark.parametrize("batch", [1, 7, 8, 20])
def test_a_sample_is_the_same_to_the_bit_in_any_tile_and_on_any_number_of_threads(batch: int) -> None:
    n = 96
    layer = Recurrent(ALIF(n, tau_mem=6.0, threshold=0.1, learn=()), Dense(n, n, bias=False))
    x = 0.4 + 0.7 * torch.randn(24, 20, n, generator=torch.Generator().manual_seed(1))

    def run(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = part.clone().requires_grad_()
        y, _ = layer(given)
        (grad,) = torch.autograd.grad((y * torch.arange(24.0).view(-1, 1, 1)).sum(), given)
        return y.detach(), grad

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, grads = run(x)
        assert_fires(whole)
        some = torch.randperm(20, generator=torch.Generator().manual_seed(2))[:batch]
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, grad = run(x[:, some])
            assert_same(y, whole[:, some])
            assert_same(grad, grads[:, some])
    finally:
        torch.set_num_threads(before)
