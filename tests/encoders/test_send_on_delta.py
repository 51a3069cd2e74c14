"""Send-on-delta in several dimensions: against a plain loop, the network layer, its identity, and what it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import HalfspaceIntersection

from spiketide import Dense, Lateral, Normalized, NormalizedLIF
from spiketide.encoders import LevelCrossing, SendOnDelta
from spiketide.errors import DataError, ParameterError, ShapeError


def ring(n: int, delta: float) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return delta * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def smooth(channels: int, seed: int, steps: int = 6000, width: float = 100.0) -> np.ndarray:
    x = gaussian_filter1d(np.random.default_rng(seed).normal(size=(steps, channels)), width, axis=0)
    return x / x.std()


def loop(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    decay: float,
    lateral: bool,
    winner: str,
    most: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The formulas of the docstring in the order of the notes: the reset of the last step's spikes, then the leak."""
    n, units = len(x), len(w)
    norms = (w**2).sum(1)
    u, s, before = np.zeros(units), np.zeros(units), x[0]
    potentials, events = np.zeros((n, units)), np.zeros((n, units))
    for t in range(n):
        taken = (w @ w.T) @ s if lateral else s * b * norms
        drive = w @ (x[t] - before) if decay == 1 else (1 - decay) * (w @ x[t])
        u = decay * (u - taken) + drive
        before, potentials[t], s = x[t], u, np.zeros(units)
        if winner == "all":
            s = (u > b * norms).astype(float)
        else:
            now = u.copy()
            while most is None or s.sum() < most:
                over = now > b * norms
                if not over.any():
                    break
                j = int(np.where(over, 2 * now - norms, -np.inf).argmax())
                s[j] += 1
                now -= (w @ w.T)[j] if lateral else np.eye(units)[j] * b * norms
        events[t] = s
    return events, potentials


SETTINGS: list[dict[str, Any]] = [
    {"winner": winner, "decay": decay, "lateral": lateral, "max_events": most}
    for decay in (0.8, 1.0)
    for lateral in (True, False)
    for winner, most in (("all", None), ("one", 1), ("one", 3), ("one", None))
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_encode_is_a_plain_loop(options: dict[str, Any], channels: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(300, channels)).cumsum(0) * 0.4
    w = rng.normal(size=(3 * channels, channels))
    b = rng.uniform(0.6, 1.2, size=len(w))
    code = SendOnDelta(vectors=w, threshold=b, **options)
    events, potentials = loop(
        x, w, b, options["decay"], options["lateral"], options["winner"], options["max_events"]
    )
    assert 0.002 < (events > 0).mean() < 0.9
    assert np.array_equal(code(x), events) and code(x).dtype == np.float32
    # with every spike the rounding grows where over-correction makes the potentials large
    np.testing.assert_allclose(code.potentials(x), potentials, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 20), st.sampled_from([0.3, 0.9, 0.99, 1.0]))
@settings(max_examples=60, deadline=None)
def test_potentials_are_the_error_along_the_vectors(
    seed: int, channels: int, units: int, decay: float
) -> None:
    """u = W^T (y - z), in float64, for any signal and any vectors; the notes' decoder by its own recursion."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, channels)).cumsum(0)
    w = rng.normal(size=(units, channels))
    w *= rng.uniform(0.5, 2.0, size=(units, 1)) / np.linalg.norm(w, axis=1, keepdims=True)
    code = SendOnDelta(vectors=w, decay=decay, max_events=4)
    events, u = code(x), code.potentials(x)
    y = x[0] if decay == 1 else np.zeros(channels)  # without a leak both begin at the first sample
    z, s = y.copy(), np.zeros(units)
    worst = 0.0
    for t in range(len(x)):
        y = x[t] if decay == 1 else decay * y + (1 - decay) * x[t]
        z = decay * (z + s @ w)
        s = events[t].astype(np.float64)
        worst = max(worst, float(np.abs(u[t] - w @ (y - z)).max()))
    assert worst < 1e-12 * max(1.0, float(np.abs(x).max()))
    start = x[0] if decay == 1 else 0.0
    after, before = code.decode(events, start), code.decode(events, start, before=True)
    np.testing.assert_allclose(u, (code.prepare(x) - before) @ w.T, atol=1e-11)
    np.testing.assert_allclose(after - before, events @ w, atol=1e-11)


def test_the_identity_needs_the_lateral_connections() -> None:
    x, w = smooth(2, 0), ring(8, 0.2)
    code = SendOnDelta(vectors=w, lateral=False, max_events=1)
    error = (code.prepare(x) - code.decode(code(x), x[0], before=True)) @ w.T
    assert np.abs(code.potentials(x) - error).max() > 1.0


@pytest.mark.parametrize("lateral", [True, False])
@pytest.mark.parametrize(("channels", "units", "decay"), [(2, 16, 0.7), (3, 12, 0.95), (8, 40, 0.9)])
def test_a_network_layer_is_the_same_thing(lateral: bool, channels: int, units: int, decay: float) -> None:
    rng = np.random.default_rng(units)
    x = smooth(channels, units, 800, 10.0) * 3
    w = rng.normal(size=(units, channels))
    b = rng.uniform(0.5, 1.0, size=units)
    if lateral:
        neuron = NormalizedLIF(units, decay=decay, threshold=torch.from_numpy(b), reset="none")
        layer: torch.nn.Module = Lateral(Dense(channels, units, bias=False), neuron).double()
    else:
        neuron = NormalizedLIF(units, decay=decay, threshold=torch.from_numpy(b), reset="soft")
        layer = Normalized(Dense(channels, units, bias=False), neuron).double()
    with torch.no_grad():
        layer.synapse.weight.copy_(torch.from_numpy(w))  # type: ignore[operator,union-attr]
        spikes, _ = layer(torch.from_numpy(x)[:, None])
    code = SendOnDelta(vectors=w, threshold=b, decay=decay, winner="all", lateral=lateral)
    events = code(x)
    assert 0.01 < events.mean() < 0.6
    assert np.array_equal(spikes[:, 0].numpy(), events)


def test_one_dimension_is_send_on_delta() -> None:
    """One event a delta moved. The vectors +-L and no leak, in eighths, where nothing is rounded."""
    x = np.random.default_rng(0).integers(-20, 21, size=(500, 1)).cumsum(0) / 8
    code = SendOnDelta(vectors=[[1.0], [-1.0]])
    reference, expected = x[0, 0], np.zeros((500, 2))
    for t in range(1, 500):
        while x[t, 0] - reference > 1.0:  # strictly, as all spikes here
            expected[t, 0] += 1
            reference += 1.0
        while reference - x[t, 0] > 1.0:
            expected[t, 1] += 1
            reference -= 1.0
    assert expected.sum() > 300 and np.array_equal(code(x), expected)
    # a ramp: an ON event every delta, never an OFF event
    ramp = np.arange(2001)[:, None] / 128
    on, off = SendOnDelta(vectors=[[0.25], [-0.25]], max_events=1)(ramp).T
    assert not off.any() and np.flatnonzero(on).tolist() == list(range(33, 2001, 32))


@given(st.integers(0, 2**31), st.floats(0.05, 2.0), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_axes_are_independent_level_crossing(seed: int, delta: float, channels: int) -> None:
    """Vectors along the axes make the code of every channel alone (drawn numbers never meet the threshold exactly)."""
    x = np.random.default_rng(seed).normal(size=(200, channels)).cumsum(0) * 0.3
    axes = np.eye(channels)
    pairs = np.stack([axes, -axes], axis=1).reshape(
        -1, channels
    )  # up and down of channel 0, of channel 1, ...
    ours = SendOnDelta(vectors=delta * pairs)
    theirs = LevelCrossing(threshold=delta, mode="send_on_delta")
    assert np.array_equal(ours(x), theirs(x))
    np.testing.assert_allclose(ours.decode(ours(x), x[0]), theirs.decode(theirs(x), x[0]), atol=1e-10)


@given(
    st.integers(0, 2**31), st.sampled_from([0.5, 0.6, 1.0, 1.3]), st.booleans(), st.sampled_from([0.9, 1.0])
)
@settings(max_examples=40, deadline=None)
def test_the_error_stays_within_the_thresholds(seed: int, b: float, small: bool, decay: float) -> None:
    """Along every vector, b |w| at most wherever a step had room for another event; and each event shortens the error."""
    x = np.random.default_rng(seed).normal(size=(300, 3)).cumsum(0) * (0.02 if small else 0.5)
    w = SendOnDelta.fit(x, 14, 0.3, directions="sphere").vectors
    length = np.linalg.norm(w, axis=1)
    code = SendOnDelta(vectors=w, threshold=b, decay=decay)
    start = x[0] if decay == 1 else 0.0
    error = code.prepare(x) - code.decode(code(x), start)
    assert bool((error @ w.T / length <= b * length + 1e-8).all())
    one = SendOnDelta(vectors=w, threshold=b, decay=decay, max_events=1)
    events = one(x)
    assert events.sum(1).max() <= 1
    y, told = one.prepare(x), one.decode(events, start)
    quiet = events.sum(1) == 0
    assert bool(((y - told)[quiet] @ w.T / length <= b * length + 1e-12).all())
    before = y - one.decode(events, start, before=True)
    shorter = np.linalg.norm(before, axis=1) - np.linalg.norm(y - told, axis=1)
    assert bool((shorter[~quiet] > -1e-12).all())


def test_the_largest_error_in_two_dimensions() -> None:
    """A slow signal is never farther from what is told than the corners of the polygon that the thresholds draw, and a step."""
    x = smooth(2, 3, 20_000, 400.0)
    step = np.linalg.norm(np.diff(x, axis=0), axis=1).max()
    for n, b in ((4, 1.0), (8, 0.6), (16, 1.0)):
        w = ring(n, 0.2)
        sides = HalfspaceIntersection(np.hstack([w / 0.2, np.full((n, 1), -b * 0.2)]), np.zeros(2))
        corner = np.linalg.norm(sides.intersections, axis=1).max()
        assert corner == pytest.approx(b * 0.2 / np.cos(np.pi / n))
        report = SendOnDelta(vectors=w, threshold=b, max_events=1).report(x)
        assert report.crowded == 0 and 0.5 * corner < report.largest <= corner + step


def test_lateral_connections_pay() -> None:
    """With them fewer events and a smaller error; without a leak the rest is lost altogether, and one winner tames over-correction."""
    x, w = smooth(2, 1), ring(16, 0.15)
    with_them = SendOnDelta(vectors=w, decay=0.98).report(x)
    without = SendOnDelta(vectors=w, decay=0.98, lateral=False).report(x)
    assert with_them.events < 0.25 * without.events and with_them.rms < 0.05 * without.rms
    assert SendOnDelta(vectors=w, lateral=False, max_events=1).report(x).relative > 1.0
    # all that are above threshold at once over-correct, and answer that in the next step, for ever
    everyone = SendOnDelta(vectors=w, threshold=0.6, winner="all").report(x)
    one = SendOnDelta(vectors=w, threshold=0.6).report(x)
    assert everyone.crowded > 0.5 and one.crowded < 0.01
    assert everyone.events > 10 * one.events and everyone.rms > one.rms


@pytest.mark.parametrize("channels", [2, 8])
def test_vectors_beat_axes_at_as_many_events(channels: int) -> None:
    fit, x = smooth(channels, 4, 12_000), smooth(channels, 5, 12_000)
    report = SendOnDelta.fit(fit, 8 * channels, 0.3).report(x, rate=1000.0)
    assert report.axes_rms is not None and report.axes_delta is not None
    assert report.rms < 0.75 * report.axes_rms
    axes = np.concatenate([np.eye(channels), -np.eye(channels)])
    same = SendOnDelta(vectors=report.axes_delta * axes, threshold=0.7).report(x)
    assert same.rms == pytest.approx(report.axes_rms) and same.events == pytest.approx(
        report.events, rel=0.05
    )


def test_report_says_what_it_says() -> None:
    x = smooth(3, 6, 2000, 30.0)
    for decay in (1.0, 0.9):
        code = SendOnDelta.fit(x, 12, 0.4, decay=decay)
        report, events = code.report(x, rate=250.0), code(x)
        error = code.prepare(x) - code.decode(events, x[0] if decay == 1 else 0.0)
        long = np.linalg.norm(error, axis=1)
        y = code.prepare(x)
        assert report.rms == pytest.approx(np.sqrt((long**2).mean()))
        assert report.relative == pytest.approx(
            report.rms / np.sqrt(((y - y.mean(0)) ** 2).sum() / 2000), rel=1e-9
        )
        assert report.largest == pytest.approx(long.max())
        assert report.channels == pytest.approx(np.sqrt((error**2).mean(0)))
        assert report.events == pytest.approx(events.sum() / 2000)
        assert report.units == pytest.approx(events.mean(0))
        assert report.crowded == pytest.approx((events.sum(1) > 1).mean())
        assert report.bits == pytest.approx(report.events * np.log2(12))
        assert report.per_second == pytest.approx(events.sum() / 2000 * 250)
        assert code.report(x).per_second is None
    still = SendOnDelta(vectors=ring(4, 1.0)).report(np.ones((10, 2)))
    assert (still.rms, still.relative, still.events, still.axes_rms) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize("options", SETTINGS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("chunk", [1, 7, 150])
def test_chunks_are_the_whole(options: dict[str, Any], chunk: int) -> None:
    x = np.random.default_rng(1).normal(size=(300, 3)).cumsum(0) * 0.3
    code = SendOnDelta(vectors=0.5 * np.random.default_rng(2).normal(size=(9, 3)), threshold=0.7, **options)
    whole, end = code.encode(x)
    start: Any = x[0] if code.decay == 1 else 0.0
    told = code.decode(whole, start)
    state, parts, heard = None, [], []
    for at in range(0, len(x), chunk):
        events, state = code.encode(x[at : at + chunk], state)
        parts.append(events)
        heard.append(code.decode(events, start))
        start = heard[-1][-1]
    assert state is not None and whole.any() and np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(state.last, end.last) and np.array_equal(state.potential, end.potential)
    np.testing.assert_allclose(np.concatenate(heard), told, atol=1e-9 * np.abs(told).max())
    # what was handed in stays as it was
    kept = [part.copy() for part in state]
    code.encode(x[:5], state)
    assert all(np.array_equal(a, b) for a, b in zip(kept, state, strict=True))
    assert np.array_equal(code(x[:100]), whole[:100])  # the future is not looked at


def test_traces_are_what_decode_sums() -> None:
    x = smooth(2, 8, 500, 20.0)
    for decay in (1.0, 0.8):
        code = SendOnDelta(vectors=ring(6, 0.3), decay=decay)
        trace = np.zeros(6)
        for row, events in zip(code.traces(code(x)), code(x), strict=True):
            trace = decay * trace + events
            np.testing.assert_allclose(row, trace, atol=1e-12)


def test_fit_reaches_all_directions() -> None:
    """No error may hide: a signal that later moves where it has not moved before is followed too."""
    rng = np.random.default_rng(0)
    moved = rng.normal(size=(500, 3)).cumsum(0) * [1.0, 0.1, 0.0]
    for directions in ("moves", "sphere"):
        for n in (4, 6, 7, 20):
            code = SendOnDelta.fit(moved, n, 0.5, directions=directions)  # type: ignore[arg-type]
            np.testing.assert_allclose(np.linalg.norm(code.vectors, axis=1), 0.5)
            # 0 lies inside of their hull: the error is bounded on all sides
            corners = HalfspaceIntersection(np.hstack([code.vectors, -np.ones((n, 1))]), np.zeros(3))
            assert bool(np.isfinite(corners.intersections).all())
            new = rng.normal(size=(200, 3)).cumsum(0)
            error = new - code.decode(code(new), new[0])
            assert bool((error @ code.vectors.T <= 0.7 * 0.25 + 1e-8).all())
    few, many = (SendOnDelta.fit(moved, 20, 0.5, directions=kind).vectors for kind in ("sphere", "moves"))
    assert np.abs(many[:, 0]).mean() > 1.3 * np.abs(few[:, 0]).mean()


def test_fit_spreads_and_is_repeatable() -> None:
    x = smooth(2, 0)
    angles = np.sort(np.arctan2(*SendOnDelta.fit(x, 12, 1.0, directions="sphere").vectors.T))
    np.testing.assert_allclose(np.diff(angles), np.pi / 6)
    y = smooth(4, 0)
    first, second = (SendOnDelta.fit(y, 24, 1.0, directions="sphere", seed=1).vectors for _ in range(2))
    assert np.array_equal(first, second)
    cosine = first @ first.T - 2 * np.eye(24)
    assert cosine.max() < np.cos(np.pi / 3) + 0.05  # the 24 of the 24-cell are 60 degrees apart
    assert not np.array_equal(first, SendOnDelta.fit(y, 24, 1.0, directions="sphere", seed=2).vectors)


def test_fewer_dimensions_follow_the_principal_ones() -> None:
    rng = np.random.default_rng(3)
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = (smooth(5, 3) * [1.0, 0.8, 0.01, 0.01, 0.01]) @ mixing
    code = SendOnDelta.fit(x, 12, 0.1, dimensions=2)
    assert np.linalg.matrix_rank(code.vectors) == 2
    np.testing.assert_allclose(np.linalg.norm(code.vectors @ mixing[:2].T, axis=1), 0.1, rtol=1e-2)
    assert code.report(x).relative < 0.1
    one = SendOnDelta.fit(x, 2, 0.1, dimensions=1)
    np.testing.assert_allclose(one.vectors[0], -one.vectors[1])


def test_key_tells_codes_apart() -> None:
    base: dict[str, Any] = {"vectors": ring(4, 1.0)}
    others: list[dict[str, Any]] = [
        {"vectors": ring(4, 1.1)},
        {"vectors": ring(6, 1.0)},
        {"threshold": 0.9},
        {"decay": 0.9},
        {"lateral": False},
        {"winner": "all"},
        {"max_events": 1},
    ]
    keys = [str(SendOnDelta(**{**base, **other}).key()) for other in [{}, *others]]
    assert len(set(keys)) == len(keys) and str(SendOnDelta(**base).key()) == keys[0]
    assert "units=4" in repr(SendOnDelta(**base))


def test_what_was_given_does_not_change_the_code() -> None:
    w = ring(4, 1.0)
    code = SendOnDelta(vectors=w)
    w[:] = 0
    assert np.linalg.norm(code.vectors, axis=1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="read-only"):
        code.vectors[0, 0] = 2.0


GOOD = np.zeros((5, 2))


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (np.zeros((0, 2)), DataError, "at least one sample"),
        (np.zeros(5), ShapeError, r"\(n, channels\), got \(5,\)"),
        (np.zeros((5, 0)), ShapeError, r"\(n, channels\)"),
        (np.zeros((5, 3)), ShapeError, r"\(n, 2\).*got \(5, 3\)"),
        (np.array([[0.0, np.nan], [np.inf, 0.0]]), DataError, "2 NaN or infinite among 4"),
        (np.zeros((5, 2), dtype=complex), DataError, "real numbers"),
        (np.array([["a", "b"]]), DataError, "real numbers"),
        (np.array([[0.0, 0.0], [1e9, 0.0]]), DataError, "larger delta"),
        (np.array([[-1e308, 0.0], [1e308, 0.0]]), DataError, "larger delta"),
    ],
)
def test_bad_signals(signal: np.ndarray, error: type[Exception], message: str) -> None:
    code = SendOnDelta(vectors=ring(4, 1.0))
    for act in (code, code.encode, code.report, code.potentials):
        with pytest.raises(error, match=message):
            act(signal)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": [1.0, 2.0]}, r"\(units, channels\), got \(2,\)"),
        ({"vectors": np.zeros((0, 2))}, r"\(units, channels\)"),
        ({"vectors": [[1.0, 0.0], [0.0, 0.0]]}, "zero rows"),
        ({"vectors": [[1e200, 0.0]]}, "finite"),
        ({"vectors": [[np.nan, 0.0]]}, "finite vectors"),
        ({"vectors": [["a", "b"]]}, "of numbers"),
        ({"threshold": 0.0}, "threshold above 0"),
        ({"threshold": [1.0, 1.0]}, r"one number or \(4,\)"),
        ({"threshold": np.nan}, "finite threshold"),
        ({"threshold": 0.4}, "0.5 or more"),
        ({"decay": 0.0}, "decay above 0"),
        ({"decay": 1.01}, "decay above 0"),
        ({"decay": np.nan}, "decay above 0"),
        ({"winner": "al"}, "did you mean 'all'"),
        ({"winner": "all", "max_events": 2}, "winner='one'"),
        ({"max_events": 0}, "1 or more"),
        ({"max_events": 1.5}, "1 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SendOnDelta(**{"vectors": ring(4, 1.0), **options})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 0.0), {}, "delta above 0"),
        ((8, -1.0), {}, "delta above 0"),
        ((8, np.nan), {}, "delta above 0"),
        ((8.0, 1.0), {}, "whole number of vectors"),
        ((2, 1.0), {}, "3 vectors or more in 2 dimensions"),
        ((3, 1.0), {"dimensions": 1}, "2 vectors in 1 dimension,"),
        ((8, 1.0), {"dimensions": 3}, "from 1 to 2"),
        ((8, 1.0), {"dimensions": 0}, "from 1 to 2"),
        ((8, 1.0), {"directions": "moved"}, "did you mean 'moves'"),
    ],
)
def test_bad_fits(arguments: tuple[int, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SendOnDelta.fit(smooth(2, 0, 100), *arguments, **options)


def test_other_misuse() -> None:
    code = SendOnDelta(vectors=ring(4, 1.0))
    with pytest.raises(ShapeError, match=r"events \(n, 4\), got \(5, 3\)"):
        code.decode(np.zeros((5, 3)))
    with pytest.raises(ParameterError, match="rate above 0 Hz"):
        code.report(GOOD, rate=0.0)
    _, state = SendOnDelta(vectors=ring(6, 1.0)).encode(GOOD)
    with pytest.raises(ShapeError, match="as it returned it"):
        code.encode(GOOD, state)
    assert code.report(GOOD[:1]).events == 0  # one sample is a signal
