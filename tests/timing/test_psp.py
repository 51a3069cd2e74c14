"""The kernels: values and slopes by plain formulas, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from spiketide.errors import ParameterError
from spiketide.timing import PSP, FixedSlope, Ramp, RampUpDown, ReL, Step


def up_down(s: float, rise: float, fall: float) -> float:
    if s <= 0 or s > fall:
        return 0.0
    return s / rise if s <= rise else (fall - s) / (fall - rise)


PLAIN: list[tuple[PSP, Callable[[float], float]]] = [
    (Step(), lambda s: 1.0 if s >= 0 else 0.0),
    (Ramp(4.0), lambda s: 0.0 if s <= 0 else min(s / 4, 1.0)),
    (RampUpDown(4.0, 12.0), lambda s: up_down(s, 4.0, 12.0)),
    (RampUpDown(0.5, 0.75), lambda s: up_down(s, 0.5, 0.75)),
    (ReL(5.0), lambda s: max(s, 0.0) / 5),
]
AT = [-math.inf, -3.0, -1e-9, 0.0, 1e-9, 0.3, 0.6, 1.0, 3.5, 4.0, 5.0, 8.0, 11.9, 12.0, 12.1, 100.0]


@pytest.mark.parametrize(
    ("psp", "plain"), PLAIN, ids=lambda part: repr(part) if isinstance(part, PSP) else ""
)
def test_values_are_those_of_the_formula(psp: PSP, plain: Callable[[float], float]) -> None:
    got = psp.value(torch.tensor(AT, dtype=torch.float64)).tolist()
    assert got == pytest.approx([plain(s) for s in AT], abs=1e-14)


@pytest.mark.parametrize(
    ("psp", "plain"), PLAIN[1:], ids=lambda part: repr(part) if isinstance(part, PSP) else ""
)
def test_slopes_are_those_of_the_formula_from_the_left(psp: PSP, plain: Callable[[float], float]) -> None:
    h = 1e-6
    finite = [s for s in AT if math.isfinite(s) and abs(s) > 1e-8]
    got = psp.slope(torch.tensor(finite, dtype=torch.float64)).tolist()
    assert got == pytest.approx([(plain(s) - plain(s - h)) / h for s in finite], abs=1e-8)
    assert psp.slope(torch.tensor([-math.inf])).tolist() == [0.0]


def test_a_jump_has_no_slope() -> None:
    assert Step().slope(torch.tensor(AT)).abs().sum() == 0


def test_a_kernel_that_falls_slowly_is_one_with_a_plateau() -> None:
    s = torch.linspace(-5, 60, 131, dtype=torch.float64)
    torch.testing.assert_close(RampUpDown(8.0, 1e12).value(s), Ramp(8.0).value(s), rtol=0, atol=1e-9)
    short = s[s <= 8]
    assert torch.equal(ReL(8.0).value(short), Ramp(8.0).value(short))


def test_units_and_words() -> None:
    kernels = [Step(), Ramp(4.0), RampUpDown(4.0, 12.0), ReL(5.0), FixedSlope(64.0, 32.0)]
    assert [psp.unit for psp in kernels] == [1.0, 4.0, 4.0, 5.0, 32.0]
    assert [repr(psp) for psp in kernels] == [
        "Step()",
        "Ramp(rise=4)",
        "RampUpDown(rise=4, fall=12)",
        "ReL(unit=5)",
        "FixedSlope(start=64, length=32)",
    ]
    for psp in kernels:
        assert repr(eval(repr(psp))) == repr(psp)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, True, "4", None])
def test_what_is_no_number_of_steps_is_refused(bad: object) -> None:
    for make, name in (
        (lambda: Ramp(bad), "rise"),  # type: ignore[arg-type]
        (lambda: RampUpDown(bad, 8.0), "rise"),  # type: ignore[arg-type]
        (lambda: RampUpDown(2.0, bad), "fall"),  # type: ignore[arg-type]
        (lambda: ReL(bad), "unit"),  # type: ignore[arg-type]
        (lambda: FixedSlope(bad, 1.0), "start"),  # type: ignore[arg-type]
        (lambda: FixedSlope(1.0, bad), "length"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ParameterError, match=f"expected {name} as a positive number of steps, got"):
            make()


@pytest.mark.parametrize("fall", [4.0, 3.0])
def test_a_fall_counts_from_the_spike(fall: float) -> None:
    with pytest.raises(ParameterError, match="fall above rise=4.*from the spike, not from the top"):
        RampUpDown(4.0, fall)
