"""The papers' counting on toy layers that are worked out here term by term."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiketide.energy import costs, paper_counts
from spiketide.errors import ParameterError

FP32, INT32 = costs("horowitz-fp32"), costs("horowitz-int32")


def test_lstm_on_paper() -> None:
    # 2 inputs, 3 units: input 4 * 2 * 3 = 24, feedback 4 * 3 * 3 = 36
    # three gates of 2 a unit: 18; candidate 4 a unit: 12; cell 2 a unit: 6; output 5 a unit: 15; 51 = 17 * 3
    counts = paper_counts("lstm", 2, 3)
    assert counts == (24 + 36 + 18 + 12 + 6 + 15, 0) == (111, 0)
    assert counts.energy(FP32) == pytest.approx(111 * 4.6)
    assert counts.energy(INT32) == pytest.approx(111 * 3.2)


def test_gru_and_rnn_on_paper() -> None:
    # matrices 3 * (6 + 9) = 45; two gates 2 * 2 * 3 = 12; candidate 12; reset product 3; mixture 6
    assert paper_counts("gru", 2, 3) == (45 + 12 + 12 + 3 + 6, 0) == (78, 0)
    # matrices 6 + 9; tanh 12
    assert paper_counts("rnn", 2, 3) == (6 + 9 + 12, 0) == (27, 0)
    assert paper_counts("rnn", 2, 3).energy(FP32) == pytest.approx(124.2)
    assert paper_counts("gru", 2, 3).energy(INT32) == pytest.approx(249.6)


def test_lif_on_paper() -> None:
    # input spikes 2 * 3 * 0.5 = 3; feedback 3 * 3 * 0.1 = 0.9; resets 3 * 0.1 = 0.3; decays 3
    counts = paper_counts("lif", 2, 3, rate_in=0.5, rate_out=0.1)
    assert counts.mac == 3 and counts.ac == pytest.approx(3 + 0.9 + 0.3)
    assert counts.energy(FP32) == pytest.approx(3 * 4.6 + 4.2 * 0.9)
    assert counts.energy(INT32) == pytest.approx(3 * 3.2 + 4.2 * 0.1)
    alone = paper_counts("lif", 2, 3, rate_in=0.5, rate_out=0.1, recurrent=False)
    assert alone.mac == 3 and alone.ac == pytest.approx(3 + 0.3)


def test_alif_on_paper() -> None:
    # input 3; feedback 0.9; resets 0.3; adaptation 0.3; decay of u, decay of eta, threshold: 9
    counts = paper_counts("alif", 2, 3, rate_in=0.5, rate_out=0.1)
    assert counts.mac == 9 and counts.ac == pytest.approx(3 + 0.9 + 0.3 + 0.3)
    assert counts.energy(FP32) == pytest.approx(9 * 4.6 + 4.5 * 0.9)
    assert paper_counts("alif", 2, 3, rate_in=0.5, rate_out=0.1, scale_input=True).mac == 12
    analog = paper_counts("alif", 2, 3, rate_in=0.5, rate_out=0.1, graded=True)
    assert analog.mac == 9 + 6 and analog.ac == pytest.approx(0.9 + 0.3 + 0.3)


def test_readout_on_paper() -> None:
    # 3 units that spike at 0.1 to 2 outputs: 0.6; two decays
    counts = paper_counts("li", 3, 2, rate_in=0.1)
    assert counts.mac == 2 and counts.ac == pytest.approx(0.6)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_silence_is_cheapest_and_lif_costs_no_more_than_alif(
    m: int, n: int, r_in: float, r_out: float
) -> None:
    lif = paper_counts("lif", m, n, rate_in=r_in, rate_out=r_out).energy(FP32)
    alif = paper_counts("alif", m, n, rate_in=r_in, rate_out=r_out).energy(FP32)
    silent = paper_counts("lif", m, n, rate_in=0, rate_out=0).energy(FP32)
    lstm = paper_counts("lstm", m, n).energy(FP32)
    assert silent == pytest.approx(n * 4.6) and silent <= lif <= alif < lstm


def test_refusals() -> None:
    with pytest.raises(ParameterError, match="did you mean 'lstm'"):
        paper_counts("lstmm", 2, 3)
    with pytest.raises(ParameterError, match="rate_in"):
        paper_counts("lif", 2, 3, rate_in=-0.1)
    with pytest.raises(ParameterError, match="n to be a positive"):
        paper_counts("lif", 2, 0)
    with pytest.raises(ParameterError, match="no feedback"):
        paper_counts("li", 2, 3, recurrent=True)
