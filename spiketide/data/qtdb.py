"""QTDB: electrocardiograms as level-crossing events, with the wave that every step belongs to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ..errors import DataError, ParameterError
from ..types import UNLABELLED
from .base import DataModule, Samples
from .download import RemoteFile, fetch

_FROM = (
    "https://raw.githubusercontent.com/byin-cwi/Efficient-spiking-networks/"
    "1331f6c052e73d48eb71a1dc62239948e874ecb2/data"
)


class QTDB(DataModule):
    """759 stretches of 5.2 s of two-lead ECG as level-crossing events, labelled step by step with six waves.

    From the QT database of PhysioNet, as Yin et al. prepared and published it: 618 training and 141 test
    sequences of 1300 steps at 250 Hz. Channels 0 and 1 are the (up, down) events of the first lead, 2 and 3
    those of the second; 23 % of the steps carry an event. Classes: P wave, PQ segment, QR and RS (the two
    flanks of the QRS complex), ST segment with T wave, TP segment.

    What to know about these files:

    - Every sequence has a 1301st step whose first channel is -1 in all of them: an end marker. It is checked
      and dropped.
    - 8.2 % of the training steps and 10.4 % of the test steps have no label. They are
      :data:`spiketide.types.UNLABELLED` here. The published scores take them for P waves (an argmax of an empty
      row): :class:`spiketide.training.Labelling` with ``unlabelled=0`` scores so, and reports labelled steps
      alone beside it.
    - The published code has no validation set; here one is carved from the training sequences.

    Example:
        >>> from spiketide.data import QTDB
        >>> data = QTDB(validation_fraction=61 / 618)
        >>> data.class_names, data.sample_shape
        (('P', 'PQ', 'QR', 'RS', 'ST', 'TP'), (4,))

    Shapes:
        Batches ``x (1300, B, 4)`` float32, 0 or 1; ``y (1300, B)`` int64, -1 where a step has no label; no lengths.

    Args:
        steps: keep only the first so many steps of each sequence, 1 to 1300; ``None``: all.
        **common: see :class:`~spiketide.data.base.DataModule`.

    Raises:
        ParameterError: steps out of range.
        DataError: a file is missing and cannot be downloaded, is broken, or is not of this format.

    Reference:
        Laguna et al., Computers in Cardiology 1997 (the QT database); Yin, Corradi & Bohté 2020 and 2021 (the
        events and the task; MIT licence).
    """

    LENGTH: ClassVar[int] = 1300
    RATE: ClassVar[float] = 250.0
    """Steps a second."""
    files: ClassVar[dict[str, RemoteFile]] = {
        "train": RemoteFile(
            "qtdb/QTDB_train.mat",
            f"{_FROM}/QTDB_train.mat",
            537262,
            "72d1a10c96f1540880447e07256835d66da419c0b34f3dff495731a7928c5bc7",
        ),
        "test": RemoteFile(
            "qtdb/QTDB_test.mat",
            f"{_FROM}/QTDB_test.mat",
            112720,
            "916f11e21679a5b61988305bbb7cd1e6df8b34f1ed4a157a7a4e295d400ef232",
        ),
    }

    def __init__(self, *, steps: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if steps is not None and not 1 <= steps <= self.LENGTH:
            raise ParameterError(
                f"QTDB expected steps from 1 to {self.LENGTH}, or None for all, got {steps}."
            )
        self.steps = steps

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def dt(self) -> float:
        """Milliseconds of a step."""
        return 1000.0 / self.RATE

    @property
    def class_names(self) -> tuple[str, ...]:
        """The six waves, in their order within a beat."""
        return ("P", "PQ", "QR", "RS", "ST", "TP")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(4,)``: up and down events of two leads."""
        return (4,)

    def prepare_data(self) -> None:
        """Download what is missing."""
        fetch(list(self.files.values()), self.data_root, title="QTDB")

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Read and verify one part."""
        path = fetch([self.files[part]], self.data_root, title="QTDB")[0]
        found = _matrices(path)
        x, y = found["x"], found["y"]
        steps, classes = self.LENGTH + 1, self.num_classes
        if x.ndim != 3 or x.shape[1:] != (steps, 4) or y.shape != (len(x), steps, classes):
            raise DataError(
                f"{path} expected x (n, {steps}, 4) and y (n, {steps}, {classes}), got {x.shape} and {y.shape}: it is not the "
                "published file; remove it to download it anew."
            )
        if not (x[:, -1, 0] == -1).all():
            raise DataError(
                f"{path} expected the end marker -1 in the last step of every sequence, some have none."
            )
        x, y = x[:, :-1], y[:, :-1]
        if not np.isin(x, (0, 1)).all():
            raise DataError(f"{path} expected events of 0 and 1, got values from {x.min()} to {x.max()}.")
        if not np.isin(y, (0, 1)).all() or (y.sum(-1) > 1).any():
            raise DataError(f"{path} expected rows of labels with at most a single 1, got others.")
        labels = np.where(y.any(-1), y.argmax(-1), UNLABELLED).astype(np.int64)
        # the test sequences are numbered after the training ones, of which there are 618
        first = 0 if part == "train" else 618
        keep = slice(0, self.steps)
        return Samples(
            torch.from_numpy(np.ascontiguousarray(x[:, keep]).astype(np.uint8)),
            torch.from_numpy(np.ascontiguousarray(labels[:, keep])),
            torch.arange(first, first + len(x)),
        )


def _matrices(path: Any) -> dict[str, np.ndarray]:
    """``x`` and ``y`` of a MATLAB file."""
    from scipy.io import loadmat

    try:
        found: dict[str, np.ndarray] = loadmat(path, variable_names=["x", "y"])
    except (
        Exception
    ) as problem:  # scipy raises many kinds on bytes that are no MATLAB file, OSError among them
        if isinstance(problem, OSError) and problem.errno is not None:
            raise DataError(f"{path} cannot be read: {problem}.") from problem
        raise DataError(
            f"{path} is broken or no MATLAB file ({problem}): remove it to download it anew."
        ) from problem
    lacking = [name for name in ("x", "y") if name not in found]
    if lacking:
        raise DataError(f"{path} expected the variables x and y, {' and '.join(lacking)} are missing.")
    return found
