"""Price models: the numbers as they stand in the table, and what lies between them."""

from __future__ import annotations

import itertools

import pytest

from spiketide.energy import COSTS, costs
from spiketide.errors import ParameterError


def test_the_numbers_of_the_table() -> None:
    fp32, int32, lemaire = costs("horowitz-fp32"), costs("horowitz-int32"), costs("lemaire")
    assert (fp32.add, fp32.mul) == (0.9, 3.7) and fp32.mac == pytest.approx(4.6)
    assert (int32.add, int32.mul) == (0.1, 3.1) and int32.mac == pytest.approx(3.2)
    assert (lemaire.add, lemaire.mul) == (0.1, 3.1) and lemaire.addressing
    kilo = 1024
    for size, price in ((8, 10.0), (32, 20.0), (1024, 100.0)):
        assert lemaire.access(size * kilo) == pytest.approx(price)
    assert lemaire.access(20 * kilo) == pytest.approx(15.0)  # halfway from 8 to 32
    assert lemaire.access(528 * kilo) == pytest.approx(60.0)  # halfway from 32 to 1024
    assert lemaire.access(2016 * kilo) == pytest.approx(180.0)  # the same slope goes on
    assert lemaire.access(0) == lemaire.access(100) == 10.0
    assert fp32.access(10**6) == int32.access(10**6) == 0.0


def test_a_larger_memory_is_never_cheaper() -> None:
    prices = [costs("lemaire").access(2**k) for k in range(30)]
    assert all(a <= b for a, b in itertools.pairwise(prices)) and prices[0] < prices[-1]


def test_every_number_has_a_source() -> None:
    for name, model in COSTS.items():
        assert model.name == name and model.about
        said = " ".join(model.sources)
        numbers = {f"{model.add:g}", f"{model.mul:g}", *(f"{price:g}" for _, price in model.sram)}
        assert all(number in said for number in numbers), f"{name} has a number without a source"
        assert all(len(source) > 30 for source in model.sources.values())


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ParameterError, match="did you mean 'horowitz-fp32'"):
        costs("horowitz-fp23")
