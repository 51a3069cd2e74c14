"""Single-spike networks learnt online, image by image: the event-driven loops of S4NN and BS4NN.

A stack of fully connected layers passes spike times on. Its weights are rows of the presynaptic side, ``rows[l][i, j]``, so
what one spike adds to a layer, and what learning takes from it, is one contiguous row. The spikes of a layer are sorted
into steps once; steps without a spike cost nothing, silent neurons neither.

The weights of binary layers stand twice: the real ones, which learn, and their signs (bytes), which the membrane adds up
in whole numbers. A ``scales`` of ``None`` means real weights.

The weight decay multiplies every weight after every image. Here one factor is kept for all and multiplied in at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from .threading import kernel

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def _sort(fire: Array, steps: int, start: Array, order: Array) -> None:
    """The neurons of each step: ``order[start[t]:start[t + 1]]``; those that fire at ``steps`` or later are left out."""
    n = fire.shape[0]
    for t in range(steps + 2):
        start[t] = 0
    for i in range(n):
        if fire[i] < steps:
            start[fire[i] + 2] += 1
    for t in range(2, steps + 2):
        start[t] += start[t - 1]
    for i in range(n):
        if fire[i] < steps:
            place = start[fire[i] + 1]
            order[place] = i
            start[fire[i] + 1] = place + 1


@njit(nogil=True, cache=True)
def _integrate(
    rows: Array, start: Array, order: Array, bound: Any, steps: int, v: Array, fire: Array
) -> None:
    """Spike times of a layer: one step after the first in which the membrane is above ``bound``."""
    n = v.shape[0]
    for j in range(n):
        v[j] = 0
        fire[j] = steps
    for t in range(steps):
        first, last = start[t], start[t + 1]
        if first == last:
            continue
        for e in range(first, last):
            row = rows[order[e]]
            for j in range(n):
                v[j] += row[j]
        later = np.int32(t + 1)
        for j in range(n):
            fresh = (v[j] > bound) & (fire[j] == steps)
            fire[j] = later if fresh else fire[j]


@njit(nogil=True, cache=True)
def _read(
    rows: Array, start: Array, order: Array, bound: Any, steps: int, v: Array, fire: Array, seen: Array
) -> None:
    """The same for the outputs; ``seen`` takes the membranes at the step of the decision."""
    n = v.shape[0]
    for j in range(n):
        v[j] = 0
        fire[j] = steps
        seen[j] = 0
    decided = False
    for t in range(steps):
        first, last = start[t], start[t + 1]
        if first == last:
            continue
        for e in range(first, last):
            row = rows[order[e]]
            for j in range(n):
                v[j] += row[j]
        later = np.int32(t + 1)
        any_fired = False
        for j in range(n):
            if v[j] > bound and fire[j] == steps:
                fire[j] = later
                any_fired = True
        # A first crossing in the last step counts as silence, and silent outputs are judged three steps before the end.
        if not decided and (t <= steps - 3 or (any_fired and later < steps)):
            for j in range(n):
                seen[j] = v[j]
            decided = any_fired


@njit(nogil=True, cache=True)
def _add(rows: Array, start: Array, order: Array, fire: Array, step: Array, masked: Array) -> None:
    """``rows[i, j] -= step[j]`` where i fired before j."""
    n = step.shape[0]
    for t in range(_last(step, fire)):
        if start[t] == start[t + 1]:
            continue
        for j in range(n):
            masked[j] = step[j] if fire[j] > t else masked.dtype.type(0)
        for e in range(start[t], start[t + 1]):
            row = rows[order[e]]
            for j in range(n):
                row[j] -= masked[j]


@njit(nogil=True, cache=True)
def _add_signed(
    rows: Array,
    signs: Array,
    start: Array,
    order: Array,
    fire: Array,
    step: Array,
    masked: Array,
    along: Array,
) -> float:
    """The same, with signs that follow; the sum of ``step[j] signs[i, j]`` over the same pairs, with the new signs."""
    n = step.shape[0]
    for j in range(n):
        along[j] = 0
    for t in range(_last(step, fire)):
        if start[t] == start[t + 1]:
            continue
        for j in range(n):
            masked[j] = step[j] if fire[j] > t else masked.dtype.type(0)
        for e in range(start[t], start[t + 1]):
            row, sign = rows[order[e]], signs[order[e]]
            for j in range(n):
                w = row[j] - masked[j]
                row[j] = w
                sign[j] = 1 if w >= 0 else -1
                along[j] += masked[j] * sign[j]
    total = 0.0
    for j in range(n):
        total += along[j]
    return total


@njit(nogil=True, cache=True)
def _last(step: Array, fire: Array) -> int:
    """The latest spike among the neurons that learn."""
    end = 0
    for j in range(step.shape[0]):
        if step[j] != 0:
            end = max(end, fire[j])
    return end


@njit(nogil=True, cache=True)
def _back(rows: Array, before: Array, fire: Array, error: Array, below: Array) -> None:
    """``below[i] = sum over j of 1[t_i < t_j] error[j] rows[i, j]``."""
    for i in range(below.shape[0]):
        total = 0.0
        for j in range(error.shape[0]):
            if before[i] < fire[j]:
                total += error[j] * rows[i, j]
        below[i] = total


@njit(nogil=True, cache=True)
def _normalise(error: Array) -> bool:
    """Divide by the Euclidean norm; whether it is above zero."""
    total = 0.0
    for j in range(error.shape[0]):
        total += float(error[j]) * float(error[j])
    if total == 0.0:
        return False
    norm = np.sqrt(total)
    for j in range(error.shape[0]):
        error[j] = error[j] / norm
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _run(
    times: Array,
    weights: Any,
    signs: Any,
    scales: Any,
    factor: float,
    threshold: float,
    limit: float,
    steps: int,
    fires: Any,
    membranes: Any,
    starts: Array,
    orders: Array,
    seen: Array,
) -> None:
    """One image through all layers."""
    layers = len(weights)
    _sort(times, steps, starts[0], orders[0])
    for layer in range(layers):
        start, order = starts[layer], orders[layer]
        if scales is None:
            bound = weights[0].dtype.type(threshold / factor)
            if layer == layers - 1:
                _read(weights[layer], start, order, bound, steps, membranes[layer], fires[layer], seen)
            else:
                _integrate(weights[layer], start, order, bound, steps, membranes[layer], fires[layer])
        else:
            # A whole number is above x where it is above the floor of x.
            whole = membranes[0].dtype.type(max(-limit, min(limit, np.floor(threshold / scales[layer]))))
            if layer == layers - 1:
                _read(signs[layer], start, order, whole, steps, membranes[layer], fires[layer], seen)
            else:
                _integrate(signs[layer], start, order, whole, steps, membranes[layer], fires[layer])
        if layer < layers - 1:
            _sort(fires[layer], steps, starts[layer + 1], orders[layer + 1])


@kernel(parallel=False, error_model="numpy")
def learn(
    times: Array,
    labels: Array,
    weights: Any,
    signs: Any,
    scales: Any,
    errors: Any,
    moves: Any,
    masked: Any,
    along: Any,
    fires: Any,
    membranes: Any,
    threshold: float,
    steps: int,
    eta: float,
    decay: float,
    gamma: int,
    wake: bool,
    updated: bool,
    eta_scale: float,
    out: Any,
    seen: Array,
    fired: Any,
) -> None:
    """Learn from images one after the other, in place.

    Args:
        times: ``(B, n_0)`` int32, ``steps`` for a pixel that never fires.
        labels: ``(B,)`` int64.
        weights: a tuple of ``(n_l, n_l+1)`` arrays, the presynaptic side first.
        signs: their signs, int8, for binary layers, or ``None``.
        scales: ``(L,)`` float64 of binary layers, or ``None``.
        errors: a tuple of ``(n_l+1,)`` work arrays of the weights' type.
        moves: such others.
        masked: such others.
        along: such others.
        fires: the same, int32.
        membranes: the same, of the weights' type, or of whole numbers for binary layers.
        threshold: a neuron fires in the first step in which its membrane is above it; its spike is counted one step later.
        steps: spikes at this step are silence.
        eta: learning rate.
        decay: after each image the weights are multiplied by ``1 - eta * decay``.
        gamma: margin in steps.
        wake: when no output fires, the right one is told to fire at ``steps - gamma``; otherwise such an image is left out.
        updated: errors travel back through the weights after their update.
        eta_scale: learning rate of the scales.
        out: a tuple of ``(B, n_l+1)`` int32, takes the spike times before learning.
        seen: ``(B, n_L)`` of the weights' type, takes the output membranes at the step of the decision.
        fired: a tuple of ``(n_l+1,)`` int64 arrays: spikes of each neuron are added to them.
    """
    layers = len(weights)
    most = times.shape[1]
    for layer in range(layers):
        most = max(most, weights[layer].shape[0])
    starts, orders = np.empty((layers, steps + 2), np.int32), np.empty((layers, most), np.int32)
    last = layers - 1
    factor = 1.0
    real = weights[0].dtype.type
    for b in range(times.shape[0]):
        _run(
            times[b], weights, signs, scales, factor, threshold, float(most), steps, fires, membranes,
            starts, orders, seen[b],
        )  # fmt: skip
        for layer in range(layers):
            count, fire, kept = fired[layer], fires[layer], out[layer][b]
            for j in range(fire.shape[0]):
                kept[j] = fire[j]
                count[j] += fire[j] < steps
        fire, error, y = fires[last], errors[last], labels[b]
        earliest = steps
        for k in range(fire.shape[0]):
            earliest = min(earliest, fire[k])
            seen[b, k] *= real(factor if scales is None else scales[last])
        for k in range(fire.shape[0]):
            target = fire[k]
            if earliest == steps:
                if k == y and wake:
                    target = np.int32(steps - gamma)
            elif k == y:
                target = np.int32(earliest)
            elif fire[k] - earliest < gamma:
                target = np.int32(min(earliest + gamma, steps))
            error[k] = real((target - fire[k]) / steps)
        after = factor * (1.0 - eta * decay)
        wrong = _normalise(error)
        for back in range(layers):
            if not wrong:
                break
            layer = last - back
            before = times[b] if layer == 0 else fires[max(layer - 1, 0)]
            error, step, fire = errors[layer], moves[layer], fires[layer]
            below = errors[max(layer - 1, 0)]
            if layer > 0 and not updated:
                _back(weights[layer], before, fire, error, below)
            for j in range(error.shape[0]):
                step[j] = real(eta / factor * error[j])
            start, order = starts[layer], orders[layer]
            if signs is None:
                _add(weights[layer], start, order, fire, step, masked[layer])
            else:
                slope = _add_signed(
                    weights[layer], signs[layer], start, order, fire, step, masked[layer], along[layer]
                )
                scales[layer] -= eta_scale * slope * factor / eta / weights[layer].size
            if layer > 0 and updated:
                _back(weights[layer], before, fire, error, below)
            if layer > 0:
                wrong = _normalise(below)
        factor = after
    if factor != 1.0:
        for layer in range(layers):
            rows = weights[layer]
            for i in range(rows.shape[0]):
                for j in range(rows.shape[1]):
                    rows[i, j] *= real(factor)


@kernel(error_model="numpy")
def evaluate(
    times: Array,
    weights: Any,
    signs: Any,
    scales: Any,
    empty: Array,
    threshold: float,
    steps: int,
    chunks: int,
    out: Any,
    seen: Array,
) -> None:
    """Spike times of all layers, and the output membranes at the step of the decision, of many images at once.

    Args:
        times: ``(B, n_0)`` int32.
        weights: as in :func:`learn`; not touched.
        signs: as there.
        scales: as there.
        empty: an empty array of the type of the membranes.
        threshold: as there.
        steps: as there.
        chunks: work is shared out in so many parts; the result does not depend on it.
        out: a tuple of ``(B, n_l+1)`` int32, takes the spike times.
        seen: ``(B, n_L)`` of the weights' type, takes the output membranes.
    """
    images = times.shape[0]
    for chunk in prange(chunks):
        _evaluate(
            times, weights, signs, scales, empty, threshold, steps,
            images * chunk // chunks, images * (chunk + 1) // chunks, out, seen,
        )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(
    times: Array,
    weights: Any,
    signs: Any,
    scales: Any,
    empty: Array,
    threshold: float,
    steps: int,
    begin: int,
    end: int,
    out: Any,
    seen: Array,
) -> None:
    layers = len(weights)
    most = times.shape[1]
    for layer in range(layers):
        most = max(most, weights[layer].shape[0], weights[layer].shape[1])
    start, order = np.empty(steps + 2, np.int32), np.empty(most, np.int32)
    membrane = np.empty(most, empty.dtype)
    for b in range(begin, end):
        _sort(times[b], steps, start, order)
        for layer in range(layers):
            v, fire = membrane[: weights[layer].shape[1]], out[layer][b]
            if scales is None:
                bound = empty.dtype.type(threshold)
                if layer == layers - 1:
                    _read(weights[layer], start, order, bound, steps, v, fire, seen[b])
                else:
                    _integrate(weights[layer], start, order, bound, steps, v, fire)
            else:
                whole = empty.dtype.type(
                    max(-float(most), min(float(most), np.floor(threshold / scales[layer])))
                )
                if layer == layers - 1:
                    _read(signs[layer], start, order, whole, steps, v, fire, seen[b])
                else:
                    _integrate(signs[layer], start, order, whole, steps, v, fire)
            if layer < layers - 1:
                _sort(fire, steps, start, order)
        if scales is not None:
            for k in range(seen.shape[1]):
                seen[b, k] *= scales[layers - 1]
