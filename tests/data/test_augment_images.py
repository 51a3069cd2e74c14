"""Changed images: where each pixel goes, what is drawn, and that nothing but seed, epoch and number says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_recipe as tiny
import torch
from scipy.ndimage import map_coordinates

from spiketide.data import MNIST, FashionMNIST
from spiketide.data.augment_images import DRAWS, ImageAugment, moved, resampled, splitmix, uniforms
from spiketide.errors import ParameterError, ShapeError
from spiketide.training.classification import Classification
from spiketide.training.folder import RunFolder
from spiketide.training.run import train

ALL: dict[str, Any] = {"shift": 2, "flip": 0.5, "rotation": 15.0, "zoom": 0.1, "erase": 0.5}


def noise(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(1, 256, size=(n, *(shape or (1, 28, 28)))).astype(np.uint8)


def drawn(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return uniforms(seed, np.full(n, epoch), np.arange(n), DRAWS)


# ---------------------------------------------------------------------------------------------- random numbers


def test_splitmix_gives_its_known_outputs():
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix(np.array([1234567, 1], np.uint64), 4)[0].tolist() == known


def test_uniforms_against_whole_numbers_of_python():
    mask = 2**64 - 1

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    def stream(seed: int, epoch: int, number: int, count: int) -> list[float]:
        step = 0x9E3779B97F4A7C15
        state = mixed(seed + step & mask) ^ epoch
        state = mixed(state + step & mask) ^ number
        begin = mixed(state + step & mask)
        return [(mixed(begin + k * step & mask) >> 11) / 2**53 for k in range(1, count + 1)]

    epochs, numbers = np.array([0, 0, 7, 10**6]), np.array([0, 1, 69999, 3])
    for seed in (0, 2**32 - 1):
        expected = [stream(seed, e, n, 5) for e, n in zip(epochs.tolist(), numbers.tolist(), strict=True)]
        assert uniforms(seed, epochs, numbers, 5).tolist() == expected


def test_uniforms_are_even_and_unrelated():
    u = np.stack([uniforms(s, np.full(2000, e), np.arange(2000), 6) for s in (0, 1) for e in range(4)])
    assert u.min() >= 0 and u.max() < 1
    assert np.unique(u).size == u.size  # seeds, epochs, numbers and draws share nothing
    counts = np.stack([np.histogram(u[..., k], bins=20, range=(0, 1))[0] for k in range(6)])
    expected = 16000 / 20
    assert ((counts - expected) ** 2 / expected).sum(
        axis=1
    ).max() < 43.8  # chi squared, 19 degrees: p = 0.001
    columns = u.reshape(-1, 6)
    for a, b in ((columns[:-1], columns[1:]), (u[0], u[1]), (u[0], u[4])):  # next number, epoch, seed
        assert np.abs(np.corrcoef(a.T, b.T)[:6, 6:]).max() < 4.5 / np.sqrt(len(a))
    assert np.abs(np.corrcoef(columns.T) - np.eye(6)).max() < 4.5 / np.sqrt(len(columns))


# ---------------------------------------------------------------------------------------------- one change at a time


def test_moved_against_roll_with_zeros():
    images = noise(10, 2, 5, 7)
    down = np.array([0, 1, -1, 2, -4, 5, 4, 0, -9, 3])
    right = np.array([0, -1, 1, 3, 0, 0, -6, 7, 2, -2])
    before = images.copy()
    found = moved(images, down, right)
    assert np.array_equal(images, before) and found.dtype == images.dtype
    for x, dy, dx, y in zip(images, down, right, found, strict=True):
        room = np.pad(x, ((0, 0), (10, 10), (10, 10)))  # nothing goes round
        assert np.array_equal(y, np.roll(room, (dy, dx), axis=(1, 2))[:, 10:15, 10:17]), (dy, dx)
    hand = moved(np.arange(1, 10).reshape(1, 1, 3, 3), np.array([1]), np.array([-1]))
    assert hand[0, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_flips_are_mirrors_of_about_as_many_as_asked_for():
    images = noise(2000, 2, 3, 4)
    found = ImageAugment(flip=0.3)(images, drawn(2000), 255.0)
    whole = images.astype(np.float32) / np.float32(255)
    mirrored = (found == whole[..., ::-1]).all(axis=(1, 2, 3))
    assert ((found == whole).all(axis=(1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.3) < 4 * np.sqrt(0.21 / 2000)
    assert np.array_equal(ImageAugment(flip=1.0)(images, drawn(2000), 255.0), whole[..., ::-1])


def test_no_rotation_and_no_zoom_is_the_identity():
    images, still, none = noise(40, 3, 9, 6), np.ones(40), np.zeros(40, int)
    assert np.array_equal(resampled(images, np.zeros(40), still, none, none), images)
    middle = np.full((40, DRAWS), 0.5)  # the middle of every range: nothing moves
    found = ImageAugment(shift=1, rotation=30.0, zoom=0.2)(images, middle, 255.0)
    assert np.array_equal(found, images / np.float32(255))
    nothing = ImageAugment()
    assert not nothing and np.array_equal(nothing(images, drawn(40), 255.0), images / np.float32(255))


def test_a_quarter_turn_takes_a_block_where_it_should_be():
    image = np.zeros((1, 1, 28, 28), np.uint8)
    image[0, 0, 3:7, 20:26] = 200  # above, right of the middle
    one, none = np.ones(1), np.zeros(1, int)
    found = resampled(image, np.array([90.0]), one, none, none)[0, 0]
    expected = np.zeros((28, 28))
    expected[2:8, 3:7] = 200  # counter-clockwise: above, left
    np.testing.assert_allclose(found, expected, atol=1e-2)
    back = resampled(image, np.array([180.0]), one, none, none)[0, 0]
    np.testing.assert_allclose(back, image[0, 0, ::-1, ::-1], atol=1e-2)
    # By the option: the largest draw turns by (nearly) 90 degrees, the smallest by -90.
    draws = np.full((2, DRAWS), 0.5)
    draws[:, 3] = 1 - 2.0**-53, 0.0
    found = ImageAugment(rotation=90.0)(image.repeat(2, axis=0), draws)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-2)
    np.testing.assert_allclose(found[1, 0], np.rot90(image[0, 0], -1), atol=1e-2)


def test_zoom_by_two_and_by_half():
    image = np.zeros((2, 1, 8, 8))
    image[:, 0, 3:5, 3:5] = 8
    none = np.zeros(2, int)
    larger, smaller = resampled(image, np.zeros(2), np.array([2.0, 0.5]), none, none)[:, 0]
    profile = np.array([0, 0, 2, 6, 8, 8, 6, 2, 0, 0])[1:9] / 8  # a ramp over the rim, at offsets of quarters
    np.testing.assert_allclose(larger, 8 * np.outer(profile, profile), atol=1e-5)
    assert smaller.sum() == pytest.approx(8.0 * 4 / 4, abs=1e-4) and np.count_nonzero(smaller) == 4


def test_resampling_against_scipy():
    rng = np.random.RandomState(3)
    n, h, w = 50, 11, 14  # more than one block
    images = rng.rand(n, 2, h, w).astype(np.float32)
    degrees, factors = rng.uniform(-180, 180, n), rng.uniform(0.4, 1.9, n)
    down, right = rng.randint(-4, 5, n), rng.randint(-4, 5, n)
    found = resampled(images, degrees, factors, down, right)
    middle = np.array([(h - 1) / 2, (w - 1) / 2])
    for k in range(n):
        a = np.radians(degrees[k])
        # Up is minus: counter-clockwise to the eye takes (row, column) = (0, 1) to (-1, 0) at 90 degrees.
        turn = factors[k] * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        targets = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1).reshape(-1, 2)
        sources = np.linalg.solve(turn, (targets - middle - (down[k], right[k])).T) + middle[:, None]
        for channel in range(2):
            expected = map_coordinates(images[k, channel], sources, order=1, mode="grid-constant", cval=0.0)
            np.testing.assert_allclose(found[k, channel].ravel(), expected, atol=3e-5)


def test_angles_and_factors_stay_in_their_ranges(monkeypatch):
    seen = {}

    def spy(images, degrees, factors, down, right):
        seen.update(degrees=degrees, factors=factors, down=down, right=right)
        return np.zeros(images.shape, np.float32)

    monkeypatch.setattr("spiketide.data.augment_images.resampled", spy)
    ImageAugment(shift=3, rotation=20.0, zoom=0.1)(noise(4000, 1, 2, 2), drawn(4000))
    for name, low, high in (("degrees", -20, 20), ("factors", 0.9, 1.1)):
        found, width = seen[name], high - low
        assert found.min() >= low and found.max() <= high
        assert found.min() < low + 0.01 * width and found.max() > high - 0.01 * width
        assert abs(found.mean() - (low + high) / 2) < 4 * width / np.sqrt(12 * 4000)
    assert set(seen["down"]) == set(seen["right"]) == set(range(-3, 4))


@pytest.mark.parametrize("size", [28, 9])
def test_erase_covers_one_rectangle_of_one_grey(size):
    n = 3000
    images = np.full((n, 2, size, size), 255, np.uint8)
    images[:, :, ::2] = 0  # only 0 and 1 are in the images: every other grey is of a rectangle
    found, whole = ImageAugment(erase=0.7)(images, drawn(n), 255.0), images / np.float32(255)
    covered = (found != whole).any(axis=(1, 2, 3))
    assert abs(covered.mean() - 0.7) < 4 * np.sqrt(0.21 / n)
    heights, widths, greys, corners = [], [], [], set()
    for x, y in zip(whole[covered], found[covered], strict=True):
        rows, columns = ((x != y).any(axis=(0, axis)).nonzero()[0] for axis in (2, 1))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        inside = y[:, top:bottom, left:right]
        assert inside.min() == inside.max()
        outside = x.copy()
        outside[:, top:bottom, left:right] = inside[0, 0, 0]
        assert np.array_equal(outside, y)
        heights.append(bottom - top)
        widths.append(right - left)
        greys.append(float(inside.max()))
        corners |= {(bool(top == 0), bool(left == 0), bool(bottom == size), bool(right == size))}
    for sides in (heights, widths):
        counts = np.bincount(sides, minlength=12)
        assert set(sides) == set(range(4, min(11, size) + 1))
        assert abs(counts[4] / len(sides) - 1 / 8) < 0.03
    assert len(corners) >= 9 and 0 <= min(greys) < 0.01 and 0.99 < max(greys) <= 1
    assert abs(np.mean(greys) - 0.5) < 0.03


def test_every_shift_is_drawn_equally_often():
    n, s = 7500, 2
    images = np.zeros((n, 1, 28, 28), np.uint8)
    images[:, 0, 14, 14] = 255
    _, _, row, column = ImageAugment(shift=s)(images, drawn(n), 255.0).nonzero()
    counts = np.zeros((5, 5))
    np.add.at(counts, (row - 12, column - 12), 1)
    assert counts.sum() == n
    assert ((counts - n / 25) ** 2 / (n / 25)).sum() < 51.2  # chi squared, 24 degrees: p = 0.001


def test_one_option_does_not_move_what_another_draws():
    images = noise(64)
    for name in ("shift", "flip", "erase"):
        alone = ImageAugment(**{name: ALL[name]})(images, drawn(64), 255.0)
        others = drawn(64)
        used = {"shift": [0, 1], "flip": [2], "erase": range(5, 11)}[name]
        others[:, [k for k in range(DRAWS) if k not in used]] = 0.25
        assert np.array_equal(alone, ImageAugment(**{name: ALL[name]})(images, others, 255.0))


def test_all_at_once_stays_in_range_and_leaves_its_input():
    images = noise(100)
    before = images.copy()
    found = ImageAugment(**ALL)(images, drawn(100), 255.0)
    assert np.array_equal(images, before)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == images.shape
    assert found.min() >= 0 and found.max() <= 1
    for batch in (1, 7, 33):  # in other company, the same to the bit
        parts = [
            ImageAugment(**ALL)(images[k : k + batch], drawn(100)[k : k + batch], 255.0)
            for k in range(0, 100, batch)
        ]
        assert np.array_equal(np.concatenate(parts), found)


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\).*got \(3, 28, 28\)"):
        ImageAugment(shift=1)(noise(3)[:, 0], drawn(3))
    with pytest.raises(ShapeError, match=r"draws \(B, 11\)"):
        ImageAugment(shift=1)(noise(3), drawn(4))


# ---------------------------------------------------------------------------------------------- as a data set


def epoch_of(data: MNIST, epoch: int) -> list[torch.Tensor]:
    """The images of an epoch in their order."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [x for batch in loader for x in batch.x]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("options", [{"shift": 2, "flip": 0.5}, ALL])
def test_changes_depend_on_seed_epoch_and_number_only(mnist_root, options):
    def data(**others: Any) -> MNIST:
        return MNIST(root=mnist_root, **{"seed": 5, "batch_size": 32, **options, **others})

    first = epoch_of(data(), 1)
    assert len(first) == 180
    for others in ({}, {"batch_size": 1}, {"batch_size": 180}, {"num_workers": 2}):
        assert same(first, epoch_of(data(**others), 1)), others
    # Image by image, from its own number: the order of the batch means nothing.
    plain = MNIST(root=mnist_root, seed=5)
    samples, shown = plain.read("train"), {}
    for epoch in (0, 1):
        loader = plain.train_dataloader()
        loader.sampler.set_epoch(epoch)
        order = [plain.split_indices["train"][place] for place in loader.sampler]
        changed = first if epoch == 1 else epoch_of(data(), 0)
        numbers = np.array(order)
        draws = uniforms(5, np.full(180, epoch), numbers, DRAWS)
        expected = ImageAugment(**options)(samples.x.numpy()[numbers], draws, 255.0)
        assert np.array_equal(torch.stack(changed).numpy(), expected)
        shown[epoch] = dict(zip(order, changed, strict=True))
    assert shown[0].keys() == shown[1].keys()
    assert sum(torch.equal(shown[0][number], shown[1][number]) for number in shown[0]) < 20
    assert not same(first, epoch_of(data(seed=6), 1))


def test_two_processes_share_what_one_sees(mnist_root):
    whole = MNIST(root=mnist_root, batch_size=20, **ALL)
    halves = []
    for rank in (0, 1):
        half = MNIST(root=mnist_root, batch_size=10, **ALL)
        half._processes = lambda rank=rank: (2, rank)
        halves.append(epoch_of(half, 3))
    woven = [x for pair in zip(*halves, strict=True) for x in pair]
    assert same(woven, epoch_of(whole, 3))


def test_only_training_images_are_changed_and_the_order_stays(mnist_root):
    plain, changed = (MNIST(root=mnist_root, seed=1, **options) for options in ({}, ALL))
    for data in (plain, changed):
        data.setup("test")
    for name in ("val_dataloader", "test_dataloader"):
        for a, b in zip(getattr(plain, name)(), getattr(changed, name)(), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    ys = [torch.cat([batch.y for batch in data.train_dataloader()]) for data in (plain, changed)]
    assert torch.equal(*ys)
    assert not same(epoch_of(plain, 0), epoch_of(changed, 0))
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    epoch_of(changed, 1)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


def test_without_changes_a_batch_is_made_as_before(mnist_root):
    nothing = MNIST(root=mnist_root, shift=0, flip=0.0, rotation=0.0, zoom=0.0, erase=0.0)
    assert nothing.change() is None
    assert type(nothing.train_dataloader().dataset) is type(nothing.val_dataloader().dataset)


def test_a_resumed_run_sees_the_images_that_it_would_have_seen(mnist_root, tmp_path, monkeypatch):
    content = tiny.content()
    content["data"] = {
        "class_path": "spiketide.data.MNIST",
        "init_args": {"root": str(mnist_root), "batch_size": 32, "limit": 96, "seed": 5, **ALL},
    }
    content["model"]["init_args"]["network"][1]["init_args"]["n_in"] = 784
    recipe = tiny.Recipe(content, name="tiny")
    seen: dict[tuple[int, int], torch.Tensor] = {}
    step = Classification.training_step

    def watch(self: Classification, batch: Any, batch_idx: int) -> Any:
        place = (self.trainer.current_epoch, batch_idx)
        if place == stop:
            raise MemoryError
        assert torch.equal(seen.setdefault(place, batch.x.clone()), batch.x)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", watch)
    stop: tuple[int, int] | None = None
    train(recipe, RunFolder(tmp_path / "whole"))
    assert len(seen) == 9
    stop = (1, 1)
    content["data"]["init_args"]["num_workers"] = 1  # it fetches early, and must fetch the right epoch
    recipe = tiny.Recipe(content, name="tiny")
    with pytest.raises(MemoryError):
        train(recipe, RunFolder(tmp_path / "cut"))
    stop = None
    train(recipe, RunFolder(tmp_path / "cut"), resume=True)
    weights = [
        torch.load(RunFolder(tmp_path / name).last, weights_only=True)["state_dict"]
        for name in ("whole", "cut")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": -1}, "shift of 0 or more whole pixels, got -1"),
        ({"shift": 1.5}, "whole pixels, got 1.5"),
        ({"shift": 28}, "shift of at most 27, got 28"),
        ({"flip": 1.1}, "flip from 0 to 1, a probability, got 1.1"),
        ({"flip": float("nan")}, "flip .* got nan"),
        ({"rotation": -1.0}, "rotation from 0 to 180 degrees, got -1.0"),
        ({"rotation": 181}, "rotation .* got 181"),
        ({"rotation": "10"}, "rotation .* got '10'"),
        ({"zoom": 1.0}, "zoom from 0 to below 1"),
        ({"zoom": -0.1}, "zoom"),
        ({"erase": 2}, "erase from 0 to 1"),
        ({"as_sequence": "rows", "shift": 1}, "as_sequence=False with shift.* got as_sequence='rows'"),
        ({"as_sequence": "pixels", "erase": 0.5}, "sequences of their pixels are not"),
    ],
)
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_changes_that_make_no_sense(kind, options, words):
    with pytest.raises(ParameterError, match=words):
        kind(**options)


def test_real_images_keep_their_ink(real_data):
    """Small shifts of real digits lose next to nothing: their rims are empty."""
    plain, changed = (MNIST(root=real_data, limit=2000, **options) for options in ({}, {"shift": 1}))
    sums = [torch.stack(epoch_of(data, 0)).sum(dim=(1, 2, 3)) for data in (plain, changed)]
    assert (sums[0] - sums[1]).abs().max() <= 10
    assert ((sums[0] - sums[1]).abs() < 1e-3).float().mean() > 0.95
