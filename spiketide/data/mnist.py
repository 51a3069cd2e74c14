"""MNIST and Fashion-MNIST from their original idx files, as images or as sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, ParameterError, unknown
from .augment import Change, Changing
from .augment_images import DRAWS, ImageAugment, uniforms
from .base import Samples
from .download import RemoteFile, fetch
from .idx import read_idx

_FORMS = (False, "pixels", "rows")
_NAMES = {
    ("train", "images"): "train-images-idx3-ubyte.gz",
    ("train", "labels"): "train-labels-idx1-ubyte.gz",
    ("test", "images"): "t10k-images-idx3-ubyte.gz",
    ("test", "labels"): "t10k-labels-idx1-ubyte.gz",
}


class IdxImages(Changing):
    """Images of 28 x 28 bytes in four gzipped idx files; :class:`MNIST` and :class:`FashionMNIST` say which.

    .. code-block:: text

        False     x (B, 1, 28, 28)    static: an encoder gives it time
        "pixels"  x (784, B, 1)       x[t] = image[t // 28, t % 28]
        with permutation_seed         x[t] = image[p[t] // 28, p[t] % 28], one p for all samples
        "rows"    x (28, B, 28)       x[t] = image[t, :]

    ``shift``, ``flip``, ``rotation``, ``zoom`` and ``erase`` change training images each time they are seen, as
    :class:`~spiketide.data.augment_images.ImageAugment` says. What is drawn for an image is a function of ``seed``,
    the epoch and the image's number alone. Validation and test images are never changed.

    Example:
        >>> from spiketide.data import MNIST
        >>> [MNIST(as_sequence=form).sample_shape for form in (False, "pixels", "rows")]
        [(1, 28, 28), (1,), (28,)]

    Shapes:
        as above, float32 in [0, 1]; ``y (B,)``; no lengths.

    Args:
        as_sequence: False for images, ``"pixels"`` or ``"rows"`` for sequences.
        permutation_seed: with ``"pixels"``: permute the pixels, from this seed; ``None``: in reading order.
        shift: most pixels to move a training image by, each way, up to 27; this and the next four with images only.
        flip: probability of mirroring it left-right (a digit becomes none).
        rotation: most degrees to turn it by, each way, up to 180.
        zoom: most that the factor of its size differs from 1, below 1.
        erase: probability of covering a rectangle of 4 to 11 pixels each side with one grey.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown form, a permutation of anything but pixels, changes of anything but images, or a
            number out of its range.
        DataError: a file is missing and cannot be downloaded, truncated or corrupt, or files do not belong
            together.
    """

    folder: ClassVar[str]
    files: ClassVar[tuple[RemoteFile, ...]]

    def __init__(
        self,
        *,
        as_sequence: Literal[False, "pixels", "rows"] = False,
        permutation_seed: int | None = None,
        shift: int = 0,
        flip: float = 0.0,
        rotation: float = 0.0,
        zoom: float = 0.0,
        erase: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if as_sequence not in _FORMS:
            raise ParameterError(unknown("as_sequence", as_sequence, _FORMS))
        if permutation_seed is not None and as_sequence != "pixels":
            raise ParameterError(
                f"{type(self).__name__} expected as_sequence='pixels' with "
                f"permutation_seed={permutation_seed}, got as_sequence={as_sequence!r}: only the order of "
                "pixels in time can be permuted."
            )
        if permutation_seed is not None and not 0 <= permutation_seed < 2**32:
            raise ParameterError(
                f"{type(self).__name__} expected permutation_seed from 0 to 2**32 - 1, got "
                f"{permutation_seed}."
            )
        self.as_sequence = as_sequence
        self.permutation_seed = permutation_seed
        self.augment = ImageAugment(shift=shift, flip=flip, rotation=rotation, zoom=zoom, erase=erase)
        if shift > 27:
            raise ParameterError(
                f"{type(self).__name__} expected shift of at most 27, got {shift}: images have 28 pixels each side."
            )
        if self.augment and as_sequence is not False:
            raise ParameterError(
                f"{type(self).__name__} expected as_sequence=False with shift, flip, rotation, zoom or erase, got "
                f"as_sequence={as_sequence!r}: images are changed, sequences of their pixels are not."
            )

    @property
    def temporal(self) -> bool:
        """Whether the images come as sequences."""
        return self.as_sequence is not False

    @property
    def class_names(self) -> tuple[str, ...]:
        """``"0"`` to ``"9"``."""
        return tuple(map(str, range(10)))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(1, 28, 28)``, ``(1,)`` for pixels, ``(28,)`` for rows."""
        return {False: (1, 28, 28), "pixels": (1,), "rows": (28,)}[self.as_sequence]

    @property
    def permutation(self) -> Tensor | None:
        """``(784,)``: which pixel comes at each step, in every part alike; ``None``: in reading order."""
        if self.permutation_seed is None:
            return None
        return torch.from_numpy(np.random.RandomState(self.permutation_seed).permutation(784))

    def change(self) -> Change | None:
        """Changes of training images, where they are asked for."""
        return _Images(self.seed, self.augment) if self.augment else None

    def prepare_data(self) -> None:
        """Download what is missing."""
        fetch(self.files, self.data_root, title=type(self).__name__)

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Read one part; ``ids`` count through the training file and on through the test file."""
        folder = self.data_root / self.folder
        images_path, labels_path = folder / _NAMES[part, "images"], folder / _NAMES[part, "labels"]
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
            raise DataError(
                f"{images_path} expected (n, 28, 28) bytes, it holds {images.shape} {images.dtype}."
            )
        if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{labels_path} expected {images.shape[0]} labels, one byte for each image of "
                f"{images_path.name}, it holds {labels.shape} {labels.dtype}: the two files do not belong "
                "together."
            )
        x = torch.from_numpy(images)
        if self.as_sequence is False:
            x = x.unsqueeze(1)
        elif self.as_sequence == "pixels":
            x = x.reshape(-1, 784, 1)
            if self.permutation is not None:
                x = x[:, self.permutation]
        first = 0 if part == "train" else len(read_idx(folder / _NAMES["train", "labels"]))
        return Samples(
            x, torch.from_numpy(labels.astype(np.int64)), torch.arange(first, first + len(x)), scale=255.0
        )


@dataclass(frozen=True)
class _Images:
    """What is done to images, all of a batch at once, in this thread (see collate)."""

    seed: int
    augment: ImageAugment

    def __call__(self, samples: Samples, rows: Tensor, epochs: NDArray[np.int64]) -> Tensor:
        assert isinstance(samples.x, Tensor)
        draws = uniforms(self.seed, epochs, samples.ids[rows].numpy(), DRAWS)
        return torch.from_numpy(self.augment(samples.x.numpy()[rows.numpy()], draws, samples.scale))


class MNIST(IdxImages):
    """70 000 handwritten digits of 28 x 28 pixels: 60 000 to train on, 10 000 to test on.

    The four original files in the folder ``mnist/`` under the data root.

    Example:
        >>> from spiketide.data import MNIST
        >>> data = MNIST(as_sequence="pixels", permutation_seed=0)
        >>> data.temporal, sorted(data.permutation.tolist()) == list(range(784))
        (True, True)

    Shapes:
        ``x (B, 1, 28, 28)``, ``(784, B, 1)`` (pixels) or ``(28, B, 28)`` (rows), float32 in [0, 1]; ``y
        (B,)``.

    Args:
        as_sequence: False for images, ``"pixels"`` or ``"rows"`` for sequences.
        permutation_seed: with ``"pixels"``: permute the pixels, from this seed; ``None``: in reading order.
        shift: most pixels to move a training image by, each way, up to 27; this and the next four with images only.
        flip: probability of mirroring it left-right (a digit becomes none).
        rotation: most degrees to turn it by, each way, up to 180.
        zoom: most that the factor of its size differs from 1, below 1.
        erase: probability of covering a rectangle of 4 to 11 pixels each side with one grey.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown form, a permutation of anything but pixels, changes of anything but images, or a
            number out of its range.
        DataError: a file is missing and cannot be downloaded, truncated or corrupt.

    Reference:
        Y. LeCun et al., Proc. IEEE 86(11), 1998 (the set); Q. V. Le, N. Jaitly, G. E. Hinton,
        arXiv:1504.00941, section 4.3 (pixel by pixel, plain and permuted). The permutation is drawn here from
        ``permutation_seed``: papers seldom publish theirs.
    """

    folder = "mnist"
    files = tuple(
        RemoteFile(f"mnist/{name}", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}", size, digest)
        for name, size, digest in (
            (
                "train-images-idx3-ubyte.gz",
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        )
    )


class FashionMNIST(IdxImages):
    """70 000 pictures of clothes, 28 x 28 pixels, in MNIST's format and sizes, and harder.

    The four original files in the folder ``fashion_mnist/`` under the data root.

    Example:
        >>> from spiketide.data import FashionMNIST
        >>> FashionMNIST().class_names[:3]
        ('T-shirt/top', 'Trouser', 'Pullover')

    Shapes:
        ``x (B, 1, 28, 28)``, ``(784, B, 1)`` (pixels) or ``(28, B, 28)`` (rows), float32 in [0, 1]; ``y
        (B,)``.

    Args:
        as_sequence: False for images, ``"pixels"`` or ``"rows"`` for sequences.
        permutation_seed: with ``"pixels"``: permute the pixels, from this seed; ``None``: in reading order.
        shift: most pixels to move a training image by, each way, up to 27; this and the next four with images only.
        flip: probability of mirroring it left-right (a digit becomes none).
        rotation: most degrees to turn it by, each way, up to 180.
        zoom: most that the factor of its size differs from 1, below 1.
        erase: probability of covering a rectangle of 4 to 11 pixels each side with one grey.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: an unknown form, a permutation of anything but pixels, changes of anything but images, or a
            number out of its range.
        DataError: a file is missing and cannot be downloaded, truncated or corrupt.

    Reference:
        H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747, 2017.
    """

    folder = "fashion_mnist"
    files = tuple(
        RemoteFile(
            f"fashion_mnist/{name}",
            f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}",
            size,
            digest,
        )
        for name, size, digest in (
            (
                "train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        )
    )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The pieces of clothing."""
        return (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        )
