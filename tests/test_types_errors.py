"""States, shapes and the words of errors."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from spiketide import Batch, detach, errors
from spiketide.errors import (
    DataError,
    EngineError,
    NonFiniteError,
    ParameterError,
    RecipeError,
    RunError,
    ShapeError,
    SpiketideError,
    unknown,
)
from spiketide.shapes import check_input, check_lengths, check_state, silence_padding, time_mask
from spiketide.types import leaves, map_state

TREE = (torch.zeros(2, 3), ((torch.ones(2),), ()), torch.full((2,), 2.0))


def test_map_and_leaves_keep_the_tree() -> None:
    doubled = map_state(lambda t: 2 * t, TREE)
    assert isinstance(doubled, tuple) and isinstance(doubled[1], tuple) and doubled[1][1] == ()
    assert [float(leaf.flatten()[0]) for leaf in leaves(doubled)] == [0.0, 2.0, 4.0]
    assert [leaf.shape for leaf in leaves(TREE)] == [(2, 3), (2,), (2,)]
    assert leaves(()) == [] and map_state(lambda t: t, ()) == ()


def test_detach_cuts_the_graph_and_shares_the_values() -> None:
    v = torch.rand(2, 3, requires_grad=True)
    state = (v * 2, (v + 1,))
    cut = detach(state)
    assert not any(leaf.requires_grad for leaf in leaves(cut))
    for a, b in zip(leaves(cut), leaves(state), strict=True):
        assert torch.equal(a, b) and a.data_ptr() == b.data_ptr()
    assert state[0].requires_grad, "the original is left as it was"


def test_batch() -> None:
    x, y = torch.rand(5, 2, 3), torch.tensor([0, 1])
    batch = Batch(x, y)
    assert batch.lengths is None and batch.x is x and batch[1] is y
    assert Batch(x, y, torch.tensor([5, 3])).lengths.tolist() == [5, 3]


def test_time_mask_and_silence() -> None:
    lengths = torch.tensor([0, 2, 3])
    assert time_mask(lengths, 3).int().tolist() == [[0, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert time_mask(lengths, 0).shape == (0, 3)
    y = torch.full((3, 3, 2), torch.nan, requires_grad=True)
    quiet = silence_padding(y, lengths)
    assert quiet[:, 0].tolist() == [[0.0, 0.0]] * 3 and bool(quiet[:, 2].isnan().all())
    (grad,) = torch.autograd.grad(quiet.sum(), y)
    assert grad[..., 0].tolist() == time_mask(lengths, 3).float().tolist()
    assert silence_padding(y, None) is y


# ------------------------------------------------------------------------------------------------------------ errors


def test_every_error_is_ours_and_also_the_builtin_one() -> None:
    kinds = {
        ShapeError: ValueError,
        ParameterError: ValueError,
        EngineError: RuntimeError,
        DataError: RuntimeError,
        RecipeError: ValueError,
        RunError: RuntimeError,
        NonFiniteError: ArithmeticError,
    }
    found = {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, SpiketideError)}
    assert found == {*kinds, SpiketideError}
    for kind, builtin in kinds.items():
        assert issubclass(kind, builtin)
        with pytest.raises(SpiketideError, match="why"):
            raise kind("why")
        assert str(pickle.loads(pickle.dumps(kind("why")))) == "why", "workers send errors home pickled"


def test_unknown_names_the_nearest_and_all() -> None:
    assert (
        unknown("reset", "sotf", ["soft", "hard"])
        == "unknown reset 'sotf'; did you mean 'soft'? Known: hard, soft"
    )
    assert unknown("reset", "qqq", ["soft", "hard"]) == "unknown reset 'qqq'. Known: hard, soft"
    assert unknown("thing", 3, []) == "unknown thing '3'. Known: (none)"
    assert "Known: 1, 2" in unknown("number", "x", [2, 1])


class Thing:
    """Stands for a layer: checks name the class."""


def test_check_input() -> None:
    def message(x: object, shape: tuple[int, ...] = (7,)) -> str:
        with pytest.raises(ShapeError) as error:
            check_input(Thing(), x, shape)  # type: ignore[arg-type]
        return str(error.value)

    check_input(Thing(), torch.zeros(5, 2, 7), (7,))
    check_input(Thing(), torch.zeros(5, 2, 7).bfloat16(), (7,))
    check_input(Thing(), torch.zeros(0, 0, 2, 3), (2, 3))
    assert message([1.0]) == "Thing expected a tensor (T, B, *N), got list. Convert it: torch.tensor(x)."
    assert message(torch.zeros(5, 2, 7, dtype=torch.int64)) == (
        "Thing expected floating point input, got torch.int64: spikes are floats here, convert with x.float()."
    )
    assert "got torch.bool" in message(torch.zeros(5, 2, 7, dtype=torch.bool))
    assert "got torch.complex64" in message(torch.zeros(5, 2, 7, dtype=torch.complex64))
    assert message(torch.zeros(2, 7)) == (
        "Thing expected (T, B, 7), got (2, 7) with 2 axes. For a single step add the time axis: x.unsqueeze(0)."
    )
    assert message(torch.zeros(5, 2, 8, 1)) == "Thing expected (T, B, 7), got (5, 2, 8, 1) with 4 axes."
    for folded, wanted in (((5, 2, 7, 1), (7,)), ((9, 2, 2, 3), (12,)), ((9, 1, 2, 3), (6,))):
        assert message(torch.zeros(folded), wanted).endswith(
            "with 4 axes. Put a torch.nn.Flatten() before it: it flattens the axes after (T, B). Static data (B, *N) also "
            "needs an encoder, which gives it a time axis."
        )
    assert message(torch.zeros(7)) == "Thing expected (T, B, 7), got (7,) with 1 axes."
    assert message(torch.zeros(2, 7, 5)) == (
        "Thing expected (T, B, 7), got (2, 7, 5): is this batch-first or features-first? "
        "spiketide is time-first: x.transpose(0, 1)."
    )
    assert "(T, B, 2, 3)" in message(torch.zeros(5, 2, 3, 2), (2, 3))


def test_check_lengths() -> None:
    x = torch.zeros(5, 2, 7)
    for good in (
        torch.tensor([0, 5]),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([3, 3], dtype=torch.uint8),
    ):
        check_lengths("Thing", x, good)
    check_lengths("Thing", torch.zeros(5, 0, 7), torch.zeros(0, dtype=torch.int64))
    for bad, message in [
        (torch.tensor([5]), r"Thing expected lengths \(2,\) of integers for input \(5, 2, 7\), got \(1,\)"),
        (torch.tensor([[5, 5]]), r"got \(1, 2\)"),
        (torch.tensor(5), r"got \(\)"),
        (torch.tensor([5.0, 5.0]), "torch.float32"),
        (torch.tensor([True, True]), "torch.bool"),
        (
            torch.ones(5, 2, dtype=torch.bool),
            r"mask \(T, B\) of the valid steps, which come first, pass mask\.sum\(0\)",
        ),
        (torch.tensor([5, 5, 5, 5, 5]), r"If x is batch-first, transpose it: x\.transpose\(0, 1\)"),
        (torch.tensor([0, 6]), "from 0 to T = 5, got 0 to 6: are they of another batch"),
        (torch.tensor([-1, 5]), "from 0 to T = 5, got -1 to 5"),
    ]:
        with pytest.raises(ShapeError, match=message):
            check_lengths("Thing", x, bad)


def test_check_state() -> None:
    def check(state: object, expected: tuple[Tensor, ...]) -> None:
        check_state(Thing(), state, expected)  # type: ignore[arg-type]

    v = torch.zeros(2, 7)
    check((v,), (v,))
    check((), ())
    with pytest.raises(
        ShapeError, match="Thing expected a state of 1 tensors, got 2: a state belongs to the layer"
    ):
        check((v, v), (v,))
    with pytest.raises(ShapeError, match="expected a state of 0 tensors, got 1"):
        check((v,), ())
    with pytest.raises(
        ShapeError, match=r"shape \(2, 7\), got \(3, 7\): the state is of another batch size or layer"
    ):
        check((torch.zeros(3, 7),), (v,))
    with pytest.raises(
        ShapeError, match=r"Thing expected state tensors of torch.float32, got torch.int64: convert the state"
    ):
        check((v.long(),), (v,))
    with pytest.raises(ShapeError, match=r"of torch.float32, got torch.float64: .*\.to\(torch.float32\)"):
        check((v, v.double()), (v, v))
    with pytest.raises(
        ShapeError,
        match=r'Thing expected state tensors on cpu, where the input is, got meta: .*\.to\("cpu"\)',
    ):
        check((v.to("meta"),), (v,))
