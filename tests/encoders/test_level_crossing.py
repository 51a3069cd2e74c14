"""Level crossing: by hand, against loops in exact arithmetic, and what may be lost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spiketide.encoders import LevelCrossing
from spiketide.errors import DataError, ParameterError, ShapeError

signals = arrays(
    np.float64,
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    elements=st.floats(-50, 50, allow_subnormal=False),
)
thresholds = st.floats(0.01, 20)


def walk(seed: int = 0, steps: int = 400, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, channels)).cumsum(0)


def test_difference_by_hand() -> None:
    x = np.array([[0.0, 1.0], [0.5, 0.75], [0.99, 0.25], [0.0, 0.25]])
    events = LevelCrossing(threshold=0.5)(x)
    assert events.dtype == np.float32
    assert events.tolist() == [
        [1, 0, 0, 0],  # 0.5 is enough
        [0, 0, 0, 1],
        [0, 1, 0, 0],
        [0, 0, 0, 0],  # nothing comes after the last step
    ]


@given(signals, thresholds)
@settings(max_examples=80, deadline=None)
def test_difference_is_its_definition(x: np.ndarray, threshold: float) -> None:
    events = LevelCrossing(threshold=threshold)(x)
    expected = np.zeros((len(x), 2 * x.shape[1]))
    for t in range(len(x) - 1):
        for c in range(x.shape[1]):
            expected[t, 2 * c] = x[t + 1, c] - x[t, c] >= threshold
            expected[t, 2 * c + 1] = x[t, c] - x[t + 1, c] >= threshold
    assert np.array_equal(events, expected)


@given(signals, thresholds)
@settings(max_examples=200, deadline=None)
def test_send_on_delta_follows_within_one_threshold(x: np.ndarray, threshold: float) -> None:
    """Exactly: not within a tolerance. And no event comes without need: before it, the signal was a threshold away."""
    code = LevelCrossing(threshold=threshold, mode="send_on_delta")
    events = code(x)
    decoded = code.decode(events, x[0])
    assert decoded.shape == x.shape
    mirror = code(-x)  # what falls is treated as what rises
    assert np.array_equal(mirror[:, 0::2], events[:, 1::2]) and np.array_equal(
        mirror[:, 1::2], events[:, 0::2]
    )
    assert bool((np.abs(x - decoded) < threshold).all())
    assert not (events[:, 0::2] * events[:, 1::2]).any()  # never up and down at once
    fired = (events[:, 0::2] + events[:, 1::2])[1:] > 0
    assert bool((np.abs(x[1:] - decoded[:-1])[fired] >= threshold * (1 - 1e-9)).all())
    assert not events[0].any()


@given(
    arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 2)), elements=st.integers(-400, 400)),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(1, 4)),
)
@settings(max_examples=100, deadline=None)
def test_send_on_delta_is_its_definition(x: np.ndarray, threshold: int, most: int | None) -> None:
    """In whole sixteenths there is no rounding: a loop over fractions says what is right."""
    expected = np.zeros((len(x), 2 * x.shape[1]))
    for c in range(x.shape[1]):
        reference = Fraction(int(x[0, c]), 16)
        for t in range(1, len(x)):
            k = int((Fraction(int(x[t, c]), 16) - reference) / Fraction(threshold, 16))  # towards 0
            if most is not None:
                k = max(-most, min(most, k))
            reference += k * Fraction(threshold, 16)
            expected[t, 2 * c + (k < 0)] = abs(k)
    code = LevelCrossing(threshold=threshold / 16, mode="send_on_delta", max_events=most)
    assert np.array_equal(code(x / 16), expected)


def test_one_event_a_step_lags_and_catches_up() -> None:
    x = np.array([0.0, 3.0, 3.0, 3.0, 3.0])[:, None]
    code = LevelCrossing(threshold=1.0, mode="send_on_delta", max_events=1)
    assert code(x)[:, 0].tolist() == [0, 1, 1, 1, 0]
    assert code.decode(code(x))[:, 0].tolist() == [0, 1, 2, 3, 3]
    assert code.report(x).largest.tolist() == [2.0]


def test_difference_loses_what_is_slow() -> None:
    """A ramp below the threshold a step: no event at all, where send-on-delta follows it."""
    ramp = np.linspace(0, 10, 101)[:, None]
    assert not LevelCrossing(threshold=0.2)(ramp).any()
    follow = LevelCrossing(threshold=0.2, mode="send_on_delta").report(ramp)
    assert follow.up[0] * 101 in (49, 50) and follow.down[0] == 0 and follow.largest[0] < 0.2


def test_send_on_delta_is_causal() -> None:
    x = walk()
    code = LevelCrossing(threshold=0.7, mode="send_on_delta")
    assert np.array_equal(code(x[:150]), code(x)[:150])


def test_channels_do_not_see_each_other() -> None:
    x = walk(channels=3)
    for mode in ("difference", "send_on_delta"):
        code = LevelCrossing(threshold=0.9, mode=mode, normalise="standard", smooth=(5, 3))
        assert np.array_equal(code(x)[:, 2:4], code(x[:, 1:2]))


def test_decode_of_difference_is_exact_for_steps_of_one_threshold() -> None:
    rng = np.random.default_rng(3)
    x = 2.0 + 0.5 * rng.integers(-1, 2, size=(200, 2)).cumsum(0)
    code = LevelCrossing(threshold=0.5)
    assert np.array_equal(code.decode(code(x), x[0]), x)
    report = code.report(x)
    assert not report.rms.any() and not report.relative.any() and not report.largest.any()


def test_report() -> None:
    x = walk(5)
    for options in ({}, {"mode": "send_on_delta", "max_events": 1}, {"mode": "send_on_delta"}):
        code = LevelCrossing(threshold=0.8, **options)
        report, events = code.report(x, rate=250.0), code(x)
        decoded = code.decode(events, x[0])
        for c in range(2):
            error = x[:, c] - decoded[:, c]
            assert report.rms[c] == pytest.approx(np.sqrt((error**2).mean()))
            assert report.relative[c] == pytest.approx(report.rms[c] / x[:, c].std())
            assert report.largest[c] == np.abs(error).max()
            assert report.up[c] == pytest.approx(events[:, 2 * c].mean())
            assert report.down[c] == pytest.approx(events[:, 2 * c + 1].mean())
            assert report.active[c] == pytest.approx((events[:, 2 * c : 2 * c + 2].sum(1) > 0).mean())
            assert report.per_second[c] == pytest.approx(events[:, 2 * c : 2 * c + 2].sum() / 400 * 250)
    assert LevelCrossing(threshold=0.8).report(x).per_second is None


def test_a_finer_threshold_costs_events_and_saves_error() -> None:
    x = walk(7, 2000, 1)
    reports = [LevelCrossing(threshold=L, mode="send_on_delta").report(x) for L in (0.25, 0.5, 1.0, 2.0)]
    assert np.all(np.diff([r.rms[0] for r in reports]) > 0)
    assert np.all(np.diff([r.up[0] for r in reports]) < 0)


def test_smoothing_is_a_local_polynomial() -> None:
    """A cubic passes a filter of order 3 unchanged; noise is reduced as least squares over five points says."""
    t = np.linspace(-1, 1, 60)
    cubic = (t**3 - 0.2 * t)[:, None]
    code = LevelCrossing(threshold=0.01, smooth=(5, 3))
    np.testing.assert_allclose(code.prepare(cubic), cubic, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(20000, 1))
    fit = np.vander(np.arange(-2.0, 3.0), 4)
    weights = (fit @ np.linalg.pinv(fit))[2]
    np.testing.assert_allclose(
        code.prepare(noise)[2:-2, 0], np.convolve(noise[:, 0], weights[::-1], "valid"), atol=1e-12
    )


def test_normalisation() -> None:
    x = walk(9, 300, 3) * [1.0, 40.0, 0.0] + [5.0, -3.0, 0.1]
    standard = LevelCrossing(threshold=1, normalise="standard").prepare(x)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(0), [1, 1, 0], atol=1e-12)
    unit = LevelCrossing(threshold=1, normalise="range").prepare(x)
    assert unit.min(0).tolist() == [0, 0, 0] and unit.max(0).tolist() == [1, 1, 0]
    code = LevelCrossing(threshold=0.1, mode="send_on_delta", normalise="standard")
    np.testing.assert_array_equal(code(x * [2.0, 4.0, 1.0]), code(x))  # powers of two: no rounding


@pytest.mark.parametrize("normalise", ["none", "standard", "range"])
@pytest.mark.parametrize("mode", ["difference", "send_on_delta"])
def test_a_flat_line_is_silent(mode: str, normalise: str) -> None:
    """0.1 has no exact mean, and the filter rounds: neither may become events."""
    flat = np.full((97, 2), 0.1)
    code = LevelCrossing(threshold=1e-3, mode=mode, normalise=normalise, smooth=(5, 3))
    assert not code(flat).any()
    report = code.report(flat)
    assert not report.relative.any()


def test_one_sample_is_silent() -> None:
    for mode in ("difference", "send_on_delta"):
        assert LevelCrossing(threshold=1.0, mode=mode)([[3.0, -1.0]]).tolist() == [[0, 0, 0, 0]]


def test_integers_and_the_input_stay_as_they_are() -> None:
    x = np.array([[0], [3], [1]], dtype=np.int16)
    assert LevelCrossing(threshold=2)(x).tolist() == [[1, 0], [0, 1], [0, 0]]
    whole = walk()
    copy = whole.copy()
    for mode in ("difference", "send_on_delta"):
        LevelCrossing(threshold=0.5, mode=mode, normalise="range", smooth=(5, 3)).report(whole)
    assert np.array_equal(whole, copy)


def test_keys_tell_codes_apart() -> None:
    codes = [
        LevelCrossing(threshold=0.5),
        LevelCrossing(threshold=0.3),
        LevelCrossing(threshold=0.5, mode="send_on_delta"),
        LevelCrossing(threshold=0.5, mode="send_on_delta", max_events=1),
        LevelCrossing(threshold=0.5, smooth=(5, 3)),
        LevelCrossing(threshold=0.5, normalise="range"),
    ]
    assert len({str(code.key()) for code in codes}) == len(codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold above 0"),
        ({"threshold": float("nan")}, "threshold above 0"),
        ({"threshold": 1.0, "mode": "diference"}, "did you mean 'difference'"),
        ({"threshold": 1.0, "normalise": "z"}, "unknown normalise"),
        ({"threshold": 1.0, "max_events": 1}, "send_on_delta"),
        ({"threshold": 1.0, "mode": "send_on_delta", "max_events": 0}, "max_events of 1"),
        ({"threshold": 1.0, "smooth": (4, 2)}, "odd"),
        ({"threshold": 1.0, "smooth": (3, 3)}, "order"),
    ],
)
def test_refuses_options(options: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        LevelCrossing(**options)


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (np.zeros(5), ShapeError, r"signal\[:, None\]"),
        (np.zeros((5, 0)), ShapeError, r"\(n, channels\)"),
        (np.zeros((0, 2)), DataError, "empty"),
        (np.array([[0.0], [np.nan], [np.inf]]), DataError, "2 NaN or infinite among 3"),
        (np.zeros((3, 1), dtype=complex), DataError, "complex"),
        (np.zeros((3, 1), dtype=bool), DataError, "bool"),
    ],
)
def test_refuses_signals(signal: np.ndarray, error: type[Exception], message: str) -> None:
    for mode in ("difference", "send_on_delta"):
        with pytest.raises(error, match=message):
            LevelCrossing(threshold=1.0, mode=mode)(signal)


def test_refuses_what_cannot_be_exact() -> None:
    with pytest.raises(DataError, match="raise the threshold"):
        LevelCrossing(threshold=1e-9, mode="send_on_delta")([[0.0], [1.0]])
    with pytest.raises(DataError, match="raise the threshold"):
        LevelCrossing(threshold=1e-3, mode="send_on_delta")([[1e15], [1e15 + 1]])
    with pytest.raises(DataError, match="at least 5 samples"):
        LevelCrossing(threshold=1.0, smooth=(5, 3))(np.zeros((4, 1)))
    with pytest.raises(ShapeError, match="2 channels"):
        LevelCrossing(threshold=1.0).decode(np.zeros((4, 3)))
    with pytest.raises(ParameterError, match="rate above 0"):
        LevelCrossing(threshold=1.0).report(np.zeros((4, 1)), rate=0.0)
