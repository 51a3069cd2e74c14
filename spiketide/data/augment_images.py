"""Augmentation of images while training: moved, mirrored, turned, zoomed, and partly covered; a whole batch at a time."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..errors import ParameterError, ShapeError

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

DRAWS = 11
"""Uniform numbers for one image: two to move it, one each to mirror, turn and zoom it, six to cover a part."""
SIDES = (4, 11)
"""Least and largest side of the rectangle that is covered (pixels)."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 32
"""Images that are resampled at a time: the arrays in between stay in the cache, which halves the time of a batch of 64."""


class ImageAugment:
    """Changes of a batch of images, each image its own way.

    With ``p`` a pixel of the new image, as an offset from the middle of the image:

    .. code-block:: text

        y[p]  = x'[R(a)^T (p - s) / f]   x' is x, mirrored left-right with probability ``flip``
        s     two whole numbers, even from -shift to shift (down, right)
        a     even from -rotation to rotation (degrees, counter-clockwise)
        f     even from 1 - zoom to 1 + zoom (above 1: larger)

    Between pixels ``x'`` is bilinear, outside it is zero. All of it is one resampling; without ``rotation`` and ``zoom``
    pixels are only moved, exactly. Then, with probability ``erase``, one rectangle of 4 to 11 pixels each side (at most
    the image), anywhere in the image, becomes one even grey from 0 to 1.

    Which numbers are used for what is fixed, so one option does not move what another draws.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_images import DRAWS, ImageAugment, uniforms
        >>> images = np.zeros((3, 1, 28, 28), np.uint8)
        >>> images[:, 0, 14, 14] = 255
        >>> draws = uniforms(seed=0, epochs=np.zeros(3, int), numbers=np.arange(3), count=DRAWS)
        >>> y = ImageAugment(shift=2)(images, draws, scale=255)
        >>> [tuple(map(int, np.argwhere(image[0])[0])) for image in y]
        [(12, 12), (16, 12), (16, 15)]

    Shapes:
        ``(B, C, H, W)`` of any real dtype, to float32 of the same shape.

    Args:
        shift: most pixels to move by, each way.
        flip: probability of mirroring left-right.
        rotation: most degrees to turn by, each way; at most 180.
        zoom: most that the factor of the size differs from 1; below 1.
        erase: probability of covering a rectangle.

    Raises:
        ParameterError: a number out of its range.

    Reference:
        Z. Zhong et al., "Random erasing data augmentation", arXiv:1708.04896, 2017: there sides follow from a drawn area and
        aspect, and the rectangle is filled with noise or a mean; here both sides are drawn evenly, and the filling is one grey.
    """

    def __init__(
        self,
        *,
        shift: int = 0,
        flip: float = 0.0,
        rotation: float = 0.0,
        zoom: float = 0.0,
        erase: float = 0.0,
    ) -> None:
        for name, given, kind, fits, wanted in (
            ("shift", shift, Integral, lambda value: value >= 0, "of 0 or more whole pixels"),
            ("flip", flip, Real, lambda value: 0 <= value <= 1, "from 0 to 1, a probability"),
            ("rotation", rotation, Real, lambda value: 0 <= value <= 180, "from 0 to 180 degrees"),
            ("zoom", zoom, Real, lambda value: 0 <= value < 1, "from 0 to below 1, where 0.1 draws factors from 0.9 to 1.1"),
            ("erase", erase, Real, lambda value: 0 <= value <= 1, "from 0 to 1, a probability"),
        ):  # fmt: skip
            if not isinstance(given, kind) or not fits(given):
                raise ParameterError(f"Augmentation of images expected {name} {wanted}, got {given!r}.")
        self.shift, self.flip, self.rotation, self.zoom, self.erase = shift, flip, rotation, zoom, erase

    def __bool__(self) -> bool:
        """Whether anything is changed at all."""
        return any((self.shift, self.flip, self.rotation, self.zoom, self.erase))

    def __call__(self, images: NDArray[Any], draws: Floats, scale: float = 1.0) -> NDArray[np.float32]:
        """The changed images over ``scale``, which is what is white in them.

        Args:
            images: ``(B, C, H, W)``; they stay as they are.
            draws: ``(B, DRAWS)``, each at least 0 and below 1: of :func:`uniforms`.
            scale: what the images are divided by, to lie in [0, 1].

        Raises:
            ShapeError: not a batch of images, or another number of draws.
        """
        if images.ndim != 4 or draws.shape != (len(images), DRAWS):
            raise ShapeError(
                f"ImageAugment expected images (B, C, H, W) and draws (B, {DRAWS}), got {images.shape} and {draws.shape}: "
                "add the axis of the channels if there is one channel."
            )
        u = draws.T
        if self.flip:
            images = np.where((u[2] < self.flip)[:, None, None, None], images[..., ::-1], images)
        down, right = (_below(u[i], 2 * self.shift + 1) - self.shift for i in (0, 1))
        if self.rotation or self.zoom:
            degrees, factors = self.rotation * (2 * u[3] - 1), 1 + self.zoom * (2 * u[4] - 1)
            images = resampled(images, degrees, factors, down, right)
        elif self.shift:
            images = moved(images, down, right)
        y = np.divide(images, np.float32(scale), dtype=np.float32)
        if self.erase:
            self._cover(y, u[5:])
        return y

    def _cover(self, y: NDArray[np.float32], u: Floats) -> None:
        chosen, inside = u[0] < self.erase, []
        for size, side, place in zip(y.shape[2:], u[1:3], u[3:5], strict=True):
            length = np.minimum(SIDES[0] + _below(side, SIDES[1] - SIDES[0] + 1), size)
            begin = _below(place, size - length + 1)[:, None]
            pixel = np.arange(size)
            inside.append(chosen[:, None] & (begin <= pixel) & (pixel < begin + length[:, None]))
        covered = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        np.copyto(y, u[5].astype(np.float32)[:, None, None, None], where=covered)


def uniforms(seed: int, epochs: Whole, numbers: Whole, count: int) -> Floats:
    """Evenly drawn numbers, at least 0 and below 1, that are a function of the arguments alone, on every machine.

    Row ``b`` is the stream of SplitMix64 that begins at a hash of ``(seed, epochs[b], numbers[b])``, the upper 53 bits of each
    output: one pass over arrays, no generator for a sample.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_images import uniforms
        >>> both = uniforms(0, np.array([3, 3]), np.array([17, 18]), 2)
        >>> both.shape, bool((uniforms(0, np.array([3]), np.array([18]), 2) == both[1:]).all())
        ((2, 2), True)

    Args:
        seed: from 0 to 2**64 - 1.
        epochs: ``(B,)``, 0 or more.
        numbers: ``(B,)``, the numbers of the samples in the data set, 0 or more.
        count: how many for a sample.

    Returns:
        ``(B, count)``.

    Reference:
        G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the constants of its
        finaliser are those of Java's ``SplittableRandom``).
    """
    state = np.full(len(numbers), seed, dtype=np.uint64)
    for word in (epochs, numbers):
        state = _mixed(state + _STEP) ^ word.astype(np.uint64)
    return (splitmix(_mixed(state + _STEP), count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix(begin: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The first outputs of the generator SplitMix64 begun at each of these numbers: ``(B,)`` to ``(B, count)``.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_images import splitmix
        >>> splitmix(np.array([0], np.uint64), 1).tolist()
        [[16294208416658607535]]
    """
    return _mixed(begin[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)


def moved(images: NDArray[Any], down: Whole, right: Whole) -> NDArray[Any]:
    """Each image ``(B, C, H, W)`` moved by its whole numbers ``(B,)`` of pixels, zeros where nothing came from.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_images import moved
        >>> moved(np.array([[[[1, 2], [3, 4]]]]), np.array([1]), np.array([-1])).tolist()
        [[[[0, 0], [2, 0]]]]
    """
    b, c, h, w = images.shape
    down, right = np.clip(down, -h, h), np.clip(right, -w, w)
    most = int(max(abs(down).max(), abs(right).max()))
    wide = np.zeros((b, c, h + 2 * most, w + 2 * most), images.dtype)
    wide[:, :, most : most + h, most : most + w] = images
    return sliding_window_view(wide, (h, w), axis=(2, 3))[np.arange(b), :, most - down, most - right]


def resampled(
    images: NDArray[Any], degrees: Floats, factors: Floats, down: Whole, right: Whole
) -> NDArray[np.float32]:
    """Each image ``(B, C, H, W)`` turned about its middle, zoomed, then moved, in one bilinear resampling; zeros from outside.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.augment_images import resampled
        >>> none, same = np.zeros(1, int), np.ones(1)
        >>> resampled(np.array([[[[1, 2], [3, 4]]]]), np.array([90.0]), same, none, none).round(3).tolist()
        [[[[2.0, 4.0], [1.0, 3.0]]]]

    Args:
        images: in any unit.
        degrees: ``(B,)``, counter-clockwise.
        factors: ``(B,)``, above 1: larger.
        down: ``(B,)`` whole pixels.
        right: ``(B,)`` whole pixels.
    """
    y = np.empty(images.shape, np.float32)
    for begin in range(0, len(images), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        y[part] = _resampled(images[part], degrees[part], factors[part], down[part], right[part])
    return y


def _resampled(
    images: NDArray[Any], degrees: Floats, factors: Floats, down: Whole, right: Whole
) -> NDArray[np.float32]:
    b, c, h, w = images.shape
    wide = np.zeros((b, c, h + 2, w + 2), np.float32)
    wide[:, :, 1:-1, 1:-1] = images
    cos, sin = (
        (f(np.radians(degrees)) / factors).astype(np.float32)[:, None, None] for f in (np.cos, np.sin)
    )
    # Where each pixel comes from: offsets from the middle, then places in the wider image.
    v = (np.arange(h, dtype=np.float32) - np.float32((h - 1) / 2) - down[:, None].astype(np.float32))[
        :, :, None
    ]
    u = (np.arange(w, dtype=np.float32) - np.float32((w - 1) / 2) - right[:, None].astype(np.float32))[
        :, None
    ]
    row, i = _split(sin * u, cos * v, h)
    column, j = _split(cos * u, -sin * v, w)
    first = (np.arange(b * c).reshape(b, c, 1, 1) * ((h + 2) * (w + 2))) + (i * (w + 2) + j)[:, None]
    row, column = row[:, None], column[:, None]
    flat = wide.reshape(-1)
    upper, lower = (
        _between(flat[k:].take(first, mode="clip"), flat[k + 1 :].take(first, mode="clip"), column)
        for k in (0, w + 2)
    )
    return _between(upper, lower, row)


def _split(
    a: NDArray[np.float32], b: NDArray[np.float32], size: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The places ``a + b`` from the middle of ``size`` pixels with a border of one: share of the next pixel, and the pixel."""
    place = a + b
    place += np.float32((size + 1) / 2)
    np.clip(place, 0, size + 1, out=place)
    pixel = np.minimum(place.astype(np.intp), size)  # the border's last pixel is a next one
    place -= pixel
    return place, pixel


def _between(
    a: NDArray[np.float32], b: NDArray[np.float32], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    b -= a
    b *= share
    b += a
    return b


def _below(u: Floats, count: int | Whole) -> Whole:
    """Whole numbers from 0 to ``count - 1``."""
    return np.floor(u * count).astype(np.int64)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, one to one."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
