"""From intensities to spike times: values, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from spiketide.errors import NonFiniteError, ParameterError, ShapeError
from spiketide.timing import IntensityToLatency

inf = math.inf


def test_bright_is_early_and_dark_is_never() -> None:
    pixels = torch.arange(256) / 255
    got = IntensityToLatency(64, threshold=10 / 255)(pixels[None])[0].tolist()
    # 255 - p over 255 of 64 steps, in whole numbers
    want = [inf if p < 10 else float((255 - p) * 64 // 255) for p in range(256)]
    assert got == want and got[255] == 0.0 and got[10] == 61.0


@pytest.mark.parametrize(("steps", "span"), [(64, 0.5), (100, 1.0), (256, 0.25)])
def test_the_span_presses_the_spikes_together(steps: int, span: float) -> None:
    x = torch.rand(5, 7, dtype=torch.float64)
    late = [[(1 - float(v)) * span * steps for v in row] for row in x]
    exact = IntensityToLatency(steps, span=span, threshold=0.0, exact=True)(x)
    torch.testing.assert_close(exact, torch.tensor(late, dtype=torch.float64))
    whole = IntensityToLatency(steps, span=span, threshold=0.0)(x)
    assert whole.tolist() == [[math.floor(v) for v in row] for row in late]
    assert float(whole.max()) < span * steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_the_compiled_pass_gives_the_bits_of_torchs_operations(dtype: torch.dtype, exact: bool) -> None:
    x = torch.rand(700, 401, dtype=torch.float64).to(dtype).t()  # many enough for threads, and not contiguous
    x[0, :256] = torch.arange(256, dtype=dtype) / 255
    code = IntensityToLatency(100, span=0.7, exact=exact)
    slow = code(x.clone().requires_grad_())  # autograd goes through torch's operations
    assert slow.requires_grad and torch.equal(code(x), slow) and bool(torch.isinf(slow).any())


def test_black_and_white_images() -> None:
    code = IntensityToLatency(64)
    assert torch.equal(code(torch.zeros(2, 1, 4, 4)), torch.full((2, 1, 4, 4), inf))
    assert torch.equal(code(torch.ones(2, 1, 4, 4)), torch.zeros(2, 1, 4, 4))
    assert code(torch.zeros(0, 4)).shape == (0, 4)
    # without a threshold black comes at the very end of its span, where a shorter window does not hear it
    assert IntensityToLatency(64, threshold=0.0)(torch.zeros(1, 1)).tolist() == [[64.0]]


def test_the_input_stays_as_it_is() -> None:
    x = torch.rand(3, 4)
    kept = x.clone()
    IntensityToLatency(64)(x)
    assert torch.equal(x, kept)
    assert (
        repr(IntensityToLatency(64, span=0.5))
        == "IntensityToLatency(64, span=0.5, threshold=0.0392157, exact=False)"
    )


def test_an_array_is_refused_in_words() -> None:
    with pytest.raises(ShapeError, match="expected intensities .* torch tensor, got ndarray.*from_numpy"):
        IntensityToLatency()(np.zeros((2, 4), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, inf, -inf])
def test_what_is_no_intensity(bad: float) -> None:
    x = torch.rand(2, 3)
    x[1, 1] = bad
    with pytest.raises(NonFiniteError, match="1 NaN or Inf among 6 values: clean the data"):
        IntensityToLatency()(x)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor([[0.0, 255.0]]), "from 0 to 1, got 0 to 255: divide bytes by 255"),
        (torch.tensor([[-0.1, 0.5]]), "from 0 to 1, got -0.1 to 0.5"),
        (
            torch.tensor([[0, 255]], dtype=torch.uint8),
            "in floating point, from 0 to 1, got torch.uint8: x / 255 for bytes",
        ),
        (torch.tensor([[True]]), "got torch.bool"),
    ],
)
def test_another_range_or_type(x: torch.Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        IntensityToLatency()(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IntensityToLatency(0), "steps as a positive integer, got 0"),
        (lambda: IntensityToLatency(64.0), r"steps as a positive integer, got 64\.0"),  # type: ignore[arg-type]
        (lambda: IntensityToLatency(True), "steps as a positive integer, got True"),
        (lambda: IntensityToLatency(span=0.0), r"span in \(0, 1\]"),
        (lambda: IntensityToLatency(span=1.5), r"span in \(0, 1\]"),
        (lambda: IntensityToLatency(span=math.nan), r"span in \(0, 1\]"),
        (lambda: IntensityToLatency(threshold=1.0), r"threshold in \[0, 1\)"),
        (lambda: IntensityToLatency(threshold=-0.1), r"threshold in \[0, 1\)"),
    ],
)
def test_settings_that_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        make()
