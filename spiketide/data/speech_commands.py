"""Google's Speech Commands: one-second clips of single words."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ..errors import DataError, ParameterError, unknown
from ..types import Batch
from .augment_sound import SpecAugment, WaveAugment, draws_for
from .base import DataModule, Samples, _Rows
from .clips import RATE, Clip, in_order, read_clip, read_wave
from .collate import collate
from .download import ENVIRONMENT, RemoteFile, fetch, user_cache
from .features import DeltaMel, FrontEnd, fingerprint, stored

log = logging.getLogger("spiketide.data")

WORDS_V1 = (
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house", "left", "marvin",
    "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree", "two",
    "up", "wow", "yes", "zero",
)  # fmt: skip
"""The 30 words of version 1, in alphabetical order."""

WORDS_V2 = tuple(sorted((*WORDS_V1, "backward", "follow", "forward", "learn", "visual")))
"""The 35 words of version 2."""

COMMANDS = ("yes", "stop", "no", "right", "up", "left", "on", "down", "off", "go")
"""The words that are classes of their own among 12, in the order of their numbers."""

NOISE = "_background_noise_"
SILENCE, UNKNOWN = 10, 11
_REPEATS = 1 << 24


class _Listed(NamedTuple):
    """What belongs to a part."""

    words: list[Clip]
    pieces: list[Clip]
    """Of noise; they come behind the words."""
    ids: Tensor
    y: Tensor
    validation: Tensor


class SpeechCommands(DataModule):
    """Single words spoken by thousands of people, one second each, as frames.

    Official layout: a folder for each word, ``validation_list.txt``, ``testing_list.txt``, and recordings of noise in
    ``_background_noise_``; what is in no list is the training part. The folder ``speech_commands_v0.01`` (or ``_v0.02``) lies in
    the data folder itself, or there in ``speech_commands/`` (where it is downloaded to) or ``SpeechCommands/``.

    - ``classes=30`` (version 1), ``35`` (version 2): the words.
    - ``classes=12``: the ten words yes, stop, no, right, up, left, on, down, off, go; ``_silence_``: pieces of one second of the
      recordings of noise; ``_unknown_``: all other words. Every recording of noise is cut into three stretches, the first 0.8 of
      it for training and a tenth each for validation and test, so the parts share no sample of it.

    Clips shorter than a second get zeros, longer ones are cut (see ``place``). Features (see
    :class:`~spiketide.data.features.FrontEnd`) are computed once, in parallel, and kept in the user's cache folder under a key of
    the front end and of the contents of all files; an interrupted computation goes on where it was. They are mapped from there,
    not read into memory. (Contents are taken as unchanged while names, sizes and times of change of all files are.)

    What is drawn in an epoch, clips and changes, is a function of ``seed``, the number of the epoch and the number of the clip
    (and of how often it came before in that epoch).

    Example:
        >>> from spiketide.data import SpeechCommands
        >>> data = SpeechCommands(version=1, classes=12)
        >>> data.sample_shape, data.num_classes, data.class_names[10:], data.dt
        ((120,), 12, ('_silence_', '_unknown_'), 10.0)

    Shapes:
        Batches ``x (T, B, *N)`` float32, ``T = 101`` and ``N = (120,)`` with the default front end; ``y (B,)``; no lengths, as
        all clips are one second.

    Args:
        version: 1 (64 721 clips of 30 words) or 2 (105 829 of 35).
        classes: 12, or all words: 30 in version 1, 35 in version 2.
        features: the front end: :class:`~spiketide.data.features.DeltaMel` (also when ``None``),
            :class:`~spiketide.data.features.DecibelMel`, or one of your own.
        place: ``"middle"``: zeros on both sides of a short clip, as much cut off on both sides of a long one; ``"start"``: zeros
            behind a short clip, the first second of a long one.
        test: ``"list"``: the clips of ``testing_list.txt``, and pieces of noise; ``"archive"`` (12 classes only): the clips of
            the separate archive ``speech_commands_test_set_v0.01`` (``_v0.02``), unpacked by hand beside the other folder, with
            silence and unknown of its own.
        silence: pieces of noise in training, validation and test (12 classes only); ``(0, 0, 0)``: the class has no samples.
            Those of training and validation are drawn from ``seed``, those of test are always the same.
        balance: ``"none"``: every clip once an epoch. ``"classes"``: as many draws as there are clips, with replacement, every
            class equally likely.
        unknown_per_epoch: see only so many clips of ``_unknown_`` in an epoch, others in each; with ``balance="none"``.
        augment: changes of the waves of training clips; their features are then computed batch by batch (some milliseconds a
            clip: use ``num_workers``).
        spec_augment: masks over the frames of training clips.
        allow_missing: leave out clips that a list names and that are not there, and do without classes that lack a part.
        jobs: processes that compute features; ``None``: one for each core where there is enough to do.
        **common: see :class:`~spiketide.data.base.DataModule`; ``validation_fraction`` is not used.

    Raises:
        ParameterError: options that do not fit together, or out of their range.
        DataError: files missing, broken, or of another rate or number of channels.

    Reference:
        P. Warden, arXiv 1804.03209, CC BY 4.0; checksums of the archives as torchaudio has them. 12 classes, 2300 and 260 pieces
        of noise and ``balance="classes"`` as Zimmer et al. 2019, who test on the separate archive, validate
        on it too, and draw the pieces for training and validation from the same noise. The 260 pieces for ``test="list"`` are
        as many as SpikingJelly's reproduction has. Only 300 clips of version 1, without noise, were at hand here.
    """

    address: ClassVar[str] = "http://download.tensorflow.org/data/"
    archives: ClassVar[dict[int, tuple[int, str]]] = {
        1: (1_489_096_277, "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"),
        2: (2_428_923_189, "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"),
    }
    """Bytes and SHA256 of ``speech_commands_v0.0N.tar.gz``."""
    stretches: ClassVar[tuple[float, float]] = (0.8, 0.9)
    """Where in a recording of noise training ends and test begins."""

    def __init__(
        self,
        *,
        version: Literal[1, 2] = 2,
        classes: Literal[12, 30, 35] = 35,
        features: FrontEnd | None = None,
        place: Literal["middle", "start"] = "middle",
        test: Literal["list", "archive"] = "list",
        silence: tuple[int, int, int] = (2300, 260, 260),
        balance: Literal["none", "classes"] = "none",
        unknown_per_epoch: int | None = None,
        augment: WaveAugment | None = None,
        spec_augment: SpecAugment | None = None,
        allow_missing: bool = False,
        jobs: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for what, given, known in (
            ("version", version, (1, 2)),
            ("place", place, ("middle", "start")),
            ("test", test, ("list", "archive")),
            ("balance", balance, ("none", "classes")),
        ):
            if given not in known:
                raise ParameterError(unknown(what, given, known))
        self.words = WORDS_V1 if version == 1 else WORDS_V2
        if classes not in (12, len(self.words)):
            raise ParameterError(
                f"SpeechCommands of version {version} expected 12 or {len(self.words)} classes, got {classes}."
            )
        silence = tuple(silence)  # type: ignore[assignment]
        if len(silence) != 3 or not (silence == (0, 0, 0) or min(silence) > 0):
            raise ParameterError(
                "SpeechCommands expected silence as three numbers of pieces (training, validation, test), each 1 or more, or "
                f"(0, 0, 0), got {silence}."
            )
        if classes != 12 and (test == "archive" or unknown_per_epoch is not None):
            raise ParameterError(
                f'SpeechCommands with {classes} classes expected test="list" and no unknown_per_epoch: both belong to 12 classes.'
            )
        if unknown_per_epoch is not None and (unknown_per_epoch < 0 or balance != "none"):
            raise ParameterError(
                "SpeechCommands expected unknown_per_epoch of 0 or more together with balance='none', got "
                f"{unknown_per_epoch} and {balance!r}."
            )
        if jobs is not None and jobs < 1:
            raise ParameterError(f"SpeechCommands expected 1 job or more, got {jobs}.")
        self.version, self.classes, self.place, self.test = version, classes, place, test
        self.features: FrontEnd = DeltaMel() if features is None else features
        self.silence: tuple[int, int, int] = silence if classes == 12 else (0, 0, 0)
        self.balance, self.unknown_per_epoch = balance, unknown_per_epoch
        self.augment, self.spec_augment = augment, spec_augment
        self.allow_missing, self.jobs = allow_missing, jobs
        self._validation = torch.empty(0, dtype=torch.bool)
        self._clips: list[Clip] = []

    @property
    def temporal(self) -> bool:
        """True."""
        return True

    @property
    def class_names(self) -> tuple[str, ...]:
        """The words, or ten of them, ``_silence_`` and ``_unknown_``."""
        return (*COMMANDS, "_silence_", "_unknown_") if self.classes == 12 else self.words

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """That of the front end."""
        return self.features.shape

    @property
    def dt(self) -> float:
        """Milliseconds from frame to frame."""
        return self.features.hop_ms

    @property
    def folder(self) -> Path:
        """The folder with the words, where there is one, else where it is downloaded to."""
        name = f"speech_commands_v0.0{self.version}"
        places = [
            self.data_root / "speech_commands" / name,
            self.data_root / "SpeechCommands" / name,
            self.data_root / name,
        ]
        return next((place for place in places if place.is_dir()), places[0])

    def prepare_data(self) -> None:
        """Download and unpack the clips when there are none; compute the features that are not cached."""
        if not self.folder.is_dir():
            self._install()
        for part in ("train", "test"):
            listed = self._listed(part)
            for clips in (listed.words, listed.pieces):
                self._features(part, clips)

    def read(self, part: Literal["train", "test"]) -> Samples:
        """Words, then pieces of noise; ``ids`` count through all words by name, the pieces of the three parts, the archive."""
        words, pieces, ids, y, validation = self._listed(part)
        if part == "train":
            self._clips, self._validation = [*words, *pieces], validation
        x: list[Tensor] = []
        for clips in (words, pieces):
            if clips:
                rows = torch.from_numpy(np.asarray(self._features(part, clips)))
                x += rows.reshape(len(clips), -1, *self.sample_shape).unbind(0)
        return Samples(x, y, ids)

    def carve(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The official validation part, and the pieces of noise that were drawn for it."""
        return (~self._validation).nonzero().flatten(), self._validation.nonzero().flatten()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches: the clips of an epoch in their order, changed where that is asked for."""
        samples, rows = self._prepared_training(), self._train_rows
        dataset = _Clips(samples, rows, self.features, self._change())
        world, rank = self._processes()
        sampler = _Epoch(dataset, world, rank, self._order(samples, rows), self._spread())
        if self.trainer is not None:
            # Workers fetch the first batches as soon as the loader is asked, before Lightning sets the epoch.
            sampler.set_epoch(self.trainer.current_epoch)
        return super()._loader(dataset, sampler, self.batch_size)

    # How.

    def _loader(
        self, dataset: _Rows, sampler: DistributedSampler[Batch], batch_size: int
    ) -> DataLoader[Batch]:
        """Validation and test batches come this way."""
        return super()._loader(_Clips(dataset.samples, dataset.rows, self.features), sampler, batch_size)

    def _check_split(self, samples: Samples, train: Tensor, validation: Tensor) -> None:
        if self.allow_missing:
            for word, rows in (("training", train), ("validation", validation)):
                if not len(rows):
                    raise DataError(f"SpeechCommands has no {word} clip among those that are there.")
            return
        super()._check_split(samples, train, validation)

    def _spread(self) -> int:
        return int(np.random.SeedSequence(self.seed).generate_state(1)[0])  # as in the base class

    def _order(self, samples: Samples, rows: Tensor) -> Callable[[torch.Generator], Tensor]:
        """Which training rows an epoch sees, in which order."""
        y, n = samples.labels(rows), len(rows)
        if self.balance == "classes":
            weights = 1.0 / torch.bincount(y, minlength=self.num_classes).double()[y]
            return lambda draws: torch.multinomial(weights, n, replacement=True, generator=draws)
        if self.unknown_per_epoch is not None:
            others, many = (y != UNKNOWN).nonzero().flatten(), (y == UNKNOWN).nonzero().flatten()
            if self.unknown_per_epoch > len(many):
                raise ParameterError(
                    f"SpeechCommands expected unknown_per_epoch of at most {len(many)}, as many clips of _unknown_ there are to "
                    f"train on, got {self.unknown_per_epoch}."
                )

            def order(draws: torch.Generator) -> Tensor:
                chosen = many[torch.randperm(len(many), generator=draws)[: self.unknown_per_epoch]]
                together = torch.cat([others, chosen])
                return together[torch.randperm(len(together), generator=draws)]

            return order
        return lambda draws: torch.randperm(n, generator=draws)

    def _change(self) -> _Change | None:
        if self.augment is None and self.spec_augment is None:
            return None
        noise: list[NDArray[np.float32]] = []
        if self.augment is not None and self.augment.background_snr is not None:
            stretches = self._noise(0, "background_snr")
            noise = [read_wave(path)[begin:end] for path, (begin, end) in stretches]
        return _Change(
            self.features, self.augment, self.spec_augment, self.seed, self._clips, noise, self.place
        )

    def _noise(self, part: int, why: str) -> list[tuple[Path, tuple[int, int]]]:
        """The recordings of noise and the stretch of each that a part (0 train, 1 validation, 2 test) may use."""
        folder = self.folder / NOISE
        paths = sorted(folder.glob("*.wav"))
        if not paths:
            raise DataError(
                f"SpeechCommands expected recordings of noise (wav) in {folder} for {why}, there is none. Unpack the archive "
                "there again; without them use silence=(0, 0, 0) and no background_snr."
            )
        found = []
        for path in paths:
            samples = len(read_wave(path))
            edges = [0, *(int(share * samples) for share in self.stretches), samples]
            begin, end = edges[part], edges[part + 1]
            if end - begin < RATE:
                raise DataError(
                    f"{path} expected a second of noise at least in each of its stretches (0.8, 0.1 and 0.1 of it), it has "
                    f"{samples} samples: it is cut off. Copy it again."
                )
            found.append((path, (begin, end)))
        return found

    def _pieces(self, part: int) -> list[Clip]:
        """Silence of a part."""
        if self.silence[part] == 0:
            return []
        noise = self._noise(part, "the class _silence_")
        draws = draws_for(self.seed if part < 2 else 0, part)
        pieces = []
        for u, v in draws.random_sample((self.silence[part], 2)):
            path, (begin, end) = noise[int(u * len(noise))]
            pieces.append(Clip(path, begin + int(v * (end - begin - RATE + 1))))
        return pieces

    def _listed(self, part: str) -> _Listed:
        """The clips of a part, from the folders, the lists and the noise."""
        folder = self.folder
        every = self._words(folder)
        lists = {
            name: self._list(folder / f"{name}_list.txt", every, folder) for name in ("validation", "testing")
        }
        both = lists["validation"] & lists["testing"]
        if both:
            raise DataError(f"{folder}: {min(both)} is in both lists, expected in one at most.")
        first = len(every)
        if part == "train":
            chosen = [(n, name) for n, name in enumerate(every) if name not in lists["testing"]]
            pieces = [self._pieces(0), self._pieces(1)]
        elif self.test == "archive":
            return self._archived(first + sum(self.silence))
        else:
            chosen = [(n, name) for n, name in enumerate(every) if name in lists["testing"]]
            pieces = [self._pieces(2)]
            first += sum(self.silence[:2])
        silent = [piece for group in pieces for piece in group]
        ids = [n for n, _ in chosen] + list(range(first, first + len(silent)))
        y = [self._label(name.split("/")[0]) for _, name in chosen] + [SILENCE] * len(silent)
        validation = [name in lists["validation"] for _, name in chosen]
        validation += [group == 1 for group, members in enumerate(pieces) for _ in members]
        words = [Clip(folder / name) for _, name in chosen]
        return _Listed(words, silent, torch.tensor(ids), torch.tensor(y), torch.tensor(validation))

    def _archived(self, first: int) -> _Listed:
        name = f"speech_commands_test_set_v0.0{self.version}"
        folder = self.folder.with_name(name)
        wanted = {*COMMANDS, "_silence_", "_unknown_"}
        lacking = sorted(word for word in wanted if not (folder / word).is_dir())
        if lacking:
            raise DataError(
                f"SpeechCommands expected the twelve folders of the test archive in {folder}, {', '.join(lacking)} not there: "
                f'unpack {self.address}{name}.tar.gz in a folder of that name, or use test="list".'
            )
        paths = sorted(path for word in wanted for path in (folder / word).glob("*.wav"))
        y = [self.class_names.index(path.parent.name) for path in paths]
        ids = torch.arange(first, first + len(paths))
        clips = [Clip(path) for path in paths]
        return _Listed(clips, [], ids, torch.tensor(y), torch.zeros(len(paths), dtype=torch.bool))

    def _label(self, word: str) -> int:
        names = self.class_names
        return names.index(word) if word in names else UNKNOWN

    def _words(self, folder: Path) -> list[str]:
        """All clips as ``word/file.wav``, sorted."""
        lacking = [word for word in self.words if not (folder / word).is_dir()]
        if lacking:
            raise DataError(
                f"SpeechCommands of version {self.version} expected a folder for each of {len(self.words)} words in {folder}, "
                f"{', '.join(lacking)} not there. Unpack speech_commands_v0.0{self.version}.tar.gz there again, or set "
                f"{ENVIRONMENT} (or the argument root) to the folder that holds it."
            )
        return sorted(
            f"{word}/{it.name}"
            for word in self.words
            for it in os.scandir(folder / word)
            if it.name.endswith(".wav")
        )

    def _list(self, path: Path, every: Sequence[str], folder: Path) -> set[str]:
        try:
            named = set(path.read_text(encoding="ascii").split())
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"{path} cannot be read ({problem}): it is part of the archive.") from problem
        absent = named.difference(every)
        if absent and not self.allow_missing:
            raise DataError(
                f"{path} names {len(named)} clips, {len(absent)} of them are not in {folder} (the first: {min(absent)}): the "
                "data set is not whole. Unpack the archive again, or pass allow_missing=True to use what is there."
            )
        return named - absent

    def _features(self, part: str, clips: list[Clip]) -> NDArray[np.float32]:
        """The features of these clips ``(n, T, prod(N))``, from the cache or computed now."""
        frames, width = self.features.frames(RATE), int(np.prod(self.sample_shape))
        key = fingerprint({**self.features.key(), "place": self.place, "clips": _contents(clips)}, [])

        def compute(first: int) -> Iterator[NDArray[np.float32]]:
            from tqdm.auto import tqdm

            title = f"Speech Commands, {part}"
            with tqdm(
                total=len(clips), initial=first, desc=title, unit=" clips", disable=None, leave=False
            ) as bar:
                for block in in_order(self.features, clips[first:], place=self.place, jobs=self.jobs):
                    bar.update(len(block))
                    yield block.reshape(len(block), frames, width)

        return stored(f"speech_commands-{self.version}-{part}", key, (len(clips), frames, width), compute)

    def _install(self) -> None:
        from filelock import FileLock

        folder = self.folder
        size, digest = self.archives[self.version]
        remote = RemoteFile(
            f"speech_commands/{folder.name}.tar.gz", f"{self.address}{folder.name}.tar.gz", size, digest
        )
        archive = self.data_root / remote.path
        ours = not archive.is_file()  # one that was put there by hand stays
        fetch([remote], self.data_root, title="SpeechCommands", hint=f"or unpack it in the folder {folder},")
        with FileLock(archive.with_name(f".{folder.name}.unpack.lock")):
            if not folder.is_dir():  # else another process was faster
                unpack(archive, folder)
                if ours:
                    archive.unlink()


class _Change(NamedTuple):
    """What is done to a training clip when it is seen."""

    front: FrontEnd
    augment: WaveAugment | None
    spec_augment: SpecAugment | None
    seed: int
    clips: list[Clip]
    noise: list[NDArray[np.float32]]
    place: str

    def __call__(self, frames: NDArray[np.float32], row: int, number: int, visit: int) -> NDArray[np.float32]:
        """The frames at a visit (epoch, and how often before in it) of the clip in a row, with its number."""
        # Streams of their own: masks do not move when waves are changed too.
        if self.augment is not None:
            draws = draws_for(self.seed, visit, number, 0)
            frames = self.front(self.augment(read_clip(self.clips[row], self.place), self.noise, draws, RATE))
        if self.spec_augment is not None:
            draws = draws_for(self.seed, visit, number, 1)
            frames = self.spec_augment(frames, self.front.bands, draws).astype(np.float32)
        return frames


class _Clips(_Rows):
    """Clips of a part. All have one length, so a batch is one tensor."""

    def __init__(
        self,
        samples: Samples,
        rows: Tensor,
        front: FrontEnd,
        change: _Change | None = None,
    ) -> None:
        super().__init__(samples, rows, temporal=True)
        self.front, self.change = front, change

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch; an index is ``visit * clips + place``."""
        chosen = [divmod(index, len(self.rows)) for index in indices]
        rows = self.rows[torch.tensor([place for _, place in chosen])].tolist()
        x, ids = self.samples.x, self.samples.ids
        clips = [x[row].numpy() for row in rows]
        if self.change is not None:
            clips = [
                self.change(clip, row, int(ids[row]), visit)
                for clip, row, (visit, _) in zip(clips, rows, chosen, strict=True)
            ]
        together = torch.from_numpy(self.front.of_batch(np.stack(clips)))
        return collate(together, self.samples.choose(torch.tensor(rows)), temporal=True)


class _Epoch(DistributedSampler[Batch]):
    """An order of each epoch, shared among processes; each index tells the epoch and how often it came before in it."""

    def __init__(
        self, dataset: _Clips, world: int, rank: int, order: Callable[[torch.Generator], Tensor], seed: int
    ) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=False)
        self.clips, self.order = len(dataset), order
        self.draws = len(order(torch.Generator().manual_seed(seed)))
        self.num_samples = -(-self.draws // world)
        self.total_size = self.num_samples * world

    def __iter__(self) -> Iterator[Any]:
        order = self.order(torch.Generator().manual_seed(self.seed + self.epoch)).numpy()
        visits = self.epoch * _REPEATS + occurrences(order)
        whole = [int(visit) * self.clips + int(place) for visit, place in zip(visits, order, strict=True)]
        whole = (whole * -(-self.total_size // len(whole)))[: self.total_size]  # the first ones again
        return iter(whole[self.rank :: self.num_replicas])


def occurrences(values: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """How often each value came before.

    Example:
        >>> import numpy as np
        >>> from spiketide.data.speech_commands import occurrences
        >>> occurrences(np.array([7, 3, 7, 7, 3])).tolist()
        [0, 0, 1, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(values) else np.empty(0, int)
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(len(values)) - np.repeat(begins, np.diff(np.r_[begins, len(values)]))
    return result


def _contents(clips: Sequence[Clip]) -> str:
    """A digest of the contents of all files and of the pieces, in order; kept for as long as no file seems changed."""
    seen: dict[Path, str] = {}
    state = hashlib.sha256()
    try:
        for clip in clips:
            if clip.path not in seen:
                status = clip.path.stat()
                seen[clip.path] = f"{os.path.abspath(clip.path)} {status.st_size} {status.st_mtime_ns}"
            state.update(f"{seen[clip.path]} {clip.begin}\n".encode())
        note = user_cache() / "features" / f"speech_commands-{state.hexdigest()[:32]}.sha256"
        if note.is_file() and len(known := note.read_text()) == 64:
            return known
        sums = {path: hashlib.sha256(path.read_bytes()).digest() for path in seen}
    except OSError as problem:
        raise DataError(f"a clip cannot be read: {problem}.") from problem
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(sums[clip.path] + f"{clip.begin}\n".encode())
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f".{note.name}.{os.getpid()}")
        fresh.write_text(digest.hexdigest())
        os.replace(fresh, note)
    except OSError as problem:
        log.warning("%s cannot be written (%s): all clips will be read again next time.", note, problem)
    return digest.hexdigest()


def _harmless(member: tarfile.TarInfo) -> bool:
    """Whether it is a file or folder that stays inside."""
    path = PurePosixPath(member.name)
    return (member.isfile() or member.isdir()) and not path.is_absolute() and ".." not in path.parts


def unpack(archive: Path, target: Path) -> None:
    """Take the data set out of its archive and put it in place in one move.

    Args:
        archive: ``speech_commands_v0.0N.tar.gz``; it stays.
        target: the folder ``speech_commands_v0.0N``, which must not exist.

    Raises:
        DataError: not a whole archive, or of something else; there is no ``target`` then.
    """
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run
    try:
        with tarfile.open(archive, "r:gz") as store:
            if hasattr(tarfile, "data_filter"):
                store.extractall(partial, filter="data")
            else:  # Python before 3.10.12 and 3.11.4
                store.extractall(partial, [member for member in store if _harmless(member)])
        inside = partial / target.name  # a copy that was packed with its folder
        whole = inside if inside.is_dir() else partial
        if not (whole / "testing_list.txt").is_file():
            raise DataError(
                f"{archive} expected testing_list.txt and a folder for each word inside, it holds something else."
            )
        whole.replace(target)
    except (tarfile.TarError, EOFError, zlib.error) as problem:
        raise DataError(
            f"{archive} is not a whole archive ({problem}). Delete it and run again."
        ) from problem
    except OSError as problem:
        raise DataError(f"{archive} cannot be unpacked to {target}: {problem}.") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
