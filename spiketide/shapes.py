"""Shapes: what a layer may be given, and which steps of a padded batch count."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from .errors import NonFiniteError, ParameterError, ShapeError
from .types import State, leaves


def is_whole(value: object, least: int = 1) -> bool:
    """Whether this is a whole number, also one of NumPy's, of ``least`` or more; ``True`` is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def sizes(owner: str, n: object) -> tuple[int, ...]:
    """A layer's feature shape from ``n=256`` or ``n=(32, 14, 14)``.

    Raises:
        ParameterError: not positive integers.
    """
    shape = tuple(n) if isinstance(n, (tuple, list, torch.Size)) else (n,)
    if not shape or not all(is_whole(k) for k in shape):
        raise ParameterError(f"{owner} expected positive sizes, n=256 or n=(32, 14, 14), got {n!r}.")
    return tuple(int(k) for k in shape)


def time_mask(lengths: Tensor, steps: int) -> Tensor:
    """Valid steps as a boolean mask.

    Shapes: ``lengths (B,)`` -> ``(T, B)``, true where ``t < lengths[b]``.
    """
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths.unsqueeze(0)


def check_input(layer: object, x: Tensor, shape: tuple[int, ...], lengths: Tensor | None = None) -> None:
    """Refuse what a layer of feature shape ``shape`` cannot take.

    Raises:
        ShapeError: not a floating tensor, wrong rank, wrong features, or lengths of another shape.
    """
    name = type(layer).__name__
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} expected a tensor (T, B, *N), got {type(x).__name__}.{no_tensor(x)}")
    if not x.is_floating_point():
        raise ShapeError(
            f"{name} expected floating point input, got {x.dtype}: spikes are floats here, convert with x.float()."
        )
    wanted = "(T, B, " + ", ".join(map(str, shape)) + ")"
    if x.dim() != len(shape) + 2:
        hint = ""
        if x.dim() == len(shape) + 1:
            hint = " For a single step add the time axis: x.unsqueeze(0)."
        elif math.prod(shape) in (x.shape[1:].numel(), x.shape[2:].numel()):
            hint = (
                " Put a torch.nn.Flatten() before it: it flattens the axes after (T, B). Static data (B, *N) also needs "
                "an encoder, which gives it a time axis."
            )
        raise ShapeError(f"{name} expected {wanted}, got {tuple(x.shape)} with {x.dim()} axes.{hint}")
    if tuple(x.shape[2:]) != shape:
        if not any(k in x.shape[:2] for k, have in zip(shape, x.shape[2:], strict=True) if k != have):
            many = f"{shape[0]} features" if len(shape) == 1 else f"features {shape}"
            got = x.shape[2] if len(shape) == 1 else tuple(x.shape[2:])
            raise ShapeError(
                f"{name} expected {wanted}, {many} a step, got {got} in {tuple(x.shape)}: change the size of the layer or the "
                "features of the data."
            )
        raise ShapeError(
            f"{name} expected {wanted}, got {tuple(x.shape)}: is this batch-first or features-first? "
            "spiketide is time-first: x.transpose(0, 1)."
        )
    if lengths is not None:
        check_lengths(name, x, lengths)


def check_tensor(name: str, x: object, what: str) -> None:
    """Refuse what is no tensor.

    Args:
        name: of who expected it.
        x: what came.
        what: what was expected, in words.

    Raises:
        ShapeError: it is an array, a list or something else.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} expected {what} as a torch tensor, got {type(x).__name__}.{no_tensor(x)}")


def no_tensor(x: object) -> str:
    """What to do with something that came in place of a tensor."""
    if type(x).__module__ == "numpy":
        return " Convert it: torch.from_numpy(x).float()."
    if isinstance(x, (list, float, int)):
        return " Convert it: torch.tensor(x)."
    if isinstance(getattr(x, "times", None), Tensor):
        return " Its field times is meant: x.times."
    if isinstance(x, tuple):
        return " A layer returns (outputs, state): take the first, or put layers into spiketide.Sequential."
    return ""


def check_dtype(layer: object, x: Tensor, weight: Tensor) -> None:
    """Refuse input of another type than the weights, which torch would refuse in words about its own kernels.

    Raises:
        ShapeError: they differ, and no autocast is there to convert.
    """
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ShapeError(
            f"{type(layer).__name__} expected input of {weight.dtype}, as its weights are, got {x.dtype}: convert it with "
            f"x.to({weight.dtype}), or the layer with .to({x.dtype})."
        )


def check_lengths(name: str, x: Tensor, lengths: Tensor) -> None:
    """Refuse lengths that are not ``(B,)`` integers from 0 to ``T``.

    Values are looked at on the CPU only: on a GPU the look would wait for the device.
    """
    if not isinstance(lengths, Tensor):
        raise ShapeError(
            f"{name} expected lengths as a tensor of integers, got {type(lengths).__name__}: torch.tensor(lengths)."
        )
    counts = not (lengths.is_floating_point() or lengths.dtype == torch.bool)
    if lengths.dim() != 1 or lengths.shape[0] != x.shape[1] or not counts:
        if lengths.shape == x.shape[:2]:
            remedy = "For a mask (T, B) of the valid steps, which come first, pass mask.sum(0)."
        elif counts:
            remedy = "If x is batch-first, transpose it: x.transpose(0, 1)."
        else:
            remedy = "Convert them with lengths.long()."
        raise ShapeError(
            f"{name} expected lengths ({x.shape[1]},) of integers for input {tuple(x.shape)}, "
            f"got {tuple(lengths.shape)} {lengths.dtype}. {remedy}"
        )
    if torch.compiler.is_compiling() or lengths.device.type != "cpu" or not lengths.numel():
        return
    low, high = (int(bound) for bound in lengths.aminmax())
    if low < 0 or high > x.shape[0]:
        raise ShapeError(
            f"{name} expected lengths from 0 to T = {x.shape[0]}, got {low} to {high}: are they of another batch?"
        )


def _kinds(state: object) -> str:
    if isinstance(state, tuple):
        return "(" + ", ".join(_kinds(leaf) for leaf in state) + ")"
    return type(state).__name__


def check_state(layer: object, state: State, expected: State) -> None:
    """Refuse a state that is not of this layer and this batch.

    Raises:
        ShapeError: another structure, another batch size (for example the last, smaller batch), another shape, another
            type of number, another device.
    """
    name = type(layer).__name__
    got, want = leaves(state), leaves(expected)
    if not isinstance(state, tuple) or not all(isinstance(leaf, Tensor) for leaf in got):
        raise ShapeError(
            f"{name} expected a tuple of tensors as its state, as it returned it, got {_kinds(state)}; None begins."
        )
    if len(got) != len(want):
        raise ShapeError(
            f"{name} expected a state of {len(want)} tensors, got {len(got)}: a state belongs to the layer that "
            "returned it; pass None to begin."
        )
    for have, need in zip(got, want, strict=True):
        if have.shape != need.shape:
            raise ShapeError(
                f"{name} expected state tensors of shape {tuple(need.shape)}, got {tuple(have.shape)}: the state is of "
                "another batch size or layer; pass None to begin a new batch."
            )
        if have.dtype != need.dtype:
            raise ShapeError(
                f"{name} expected state tensors of {need.dtype}, got {have.dtype}: convert the state with "
                f".to({need.dtype}), or give input of the type with which it was made; pass None to begin."
            )
        if have.device != need.device:
            raise ShapeError(
                f"{name} expected state tensors on {need.device}, where the input is, got {have.device}: move the state "
                f'with .to("{need.device}"); pass None to begin.'
            )


def check_finite(name: str, x: Tensor, lengths: Tensor | None) -> None:
    """Refuse a sequence with NaN or infinity among its valid steps.

    Args:
        name: of the layer, for the message.
        x: ``(T, B, *N)``.
        lengths: valid steps of each sample ``(B,)``; ``None``: all.

    Raises:
        NonFiniteError: naming the first step and sample that hold one.
    """
    bad = ~torch.isfinite(x.detach()).flatten(2).all(2)
    if lengths is not None:
        bad &= time_mask(lengths.to(x.device), x.shape[0])
    if bad.any():
        t, b = (int(i) for i in bad.nonzero()[0])
        raise NonFiniteError(
            f"{name} expected finite input, got NaN or infinity first at step {t} of sample {b}: check the data and the "
            "learning rate (diverged weights give this too)."
        )


def silence_padding(y: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero in the steps past each sample's end.

    Shapes: ``y (T, B, *N)``, ``lengths (B,)`` or ``None`` (all steps are valid).
    """
    if lengths is None:
        return y
    past = ~time_mask(lengths.to(y.device), y.shape[0])
    return y.masked_fill(past.reshape(past.shape + (1,) * (y.dim() - 2)), 0.0)


def last_valid(y: Tensor, otherwise: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The last step of each sample of ``y (T, B, *N)`` that is valid ``(B, *N)``; ``otherwise`` of one that has none."""
    if not len(y):
        return otherwise
    if lengths is None:
        return y[-1]
    rows = torch.arange(y.shape[1], device=y.device)
    some = (lengths > 0).view(-1, *(1,) * (y.dim() - 2))
    return torch.where(some, y[(lengths - 1).clamp(0, len(y) - 1), rows], otherwise)
