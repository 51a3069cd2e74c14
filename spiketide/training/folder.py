"""The folder of one run: who holds it, what lies in it, and writes that lose nothing.

::

    runs/<recipe>/<name>/
      recipe.yaml       every argument written out; itself a recipe
      versions.json     python, torch, numba, …, machine, seed, commit, command line
      metrics.csv       one row an epoch           metrics.json   the same, with the best epoch
      checkpoints/      last.ckpt, best.ckpt
      test.json         the one measurement on test data
      report.html       run.log       tensorboard/
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ..errors import RunError
from ..plain import to_json

log = logging.getLogger("spiketide")

PACKAGES = (
    "spiketide", "torch", "lightning", "numba", "numpy", "scipy", "scikit-learn", "jsonargparse", "librosa", "triton",
)  # fmt: skip


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that after any interruption either the old or the new content stands there, whole.

    Raises:
        RunError: the folder cannot be written; the old content is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too leaves no half file behind
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refusal(path, error) from error
        raise


def refusal(path: Path, error: OSError) -> RunError:
    """The run error that explains why something could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, then = "the disk is full", "Free some space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what, then = "the folder is read-only", "Choose another folder with --run"
    else:
        what, then = str(error.strerror or error), "Choose another folder with --run"
    kept = " What was written before is intact; go on with --resume." if path.exists() else ""
    return RunError(f"cannot write {path}: {what}. {then}.{kept}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside the old one, synced to disk, and then moved over it.

    Lightning's own writer stages in the system's temporary folder, which may be another disk, and does not sync.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Serialise ``checkpoint`` and put it in place of ``path``.

        Only one process of a distributed run gets here, and the others wait for it: a list as ``storage_options`` takes
        the error that would leave them waiting.
        """
        try:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            write(Path(path), buffer.getvalue())
        except Exception as error:
            if not isinstance(storage_options, list):
                raise
            storage_options.append(error)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Raises:
        RunError: the file is truncated, or is no checkpoint of a training.
    """
    remedy = "Put a copy of it back, or train the recipe anew in another folder (--run)."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}. {remedy}") from error
    except Exception as error:  # torch, zipfile and pickle each have errors of their own for broken files
        told = str(error).strip().split("\n")[0].split(". ")[0]
        raise RunError(
            f"cannot read {path}: it is truncated or no checkpoint ({type(error).__name__}: {told}). {remedy}"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise RunError(f"cannot read {path}: it holds no checkpoint of a training. {remedy}")
    return content


class RunFolder:
    """One run on disk.

    Args:
        path: its folder.
        writer: false in the further processes of a distributed run, which read but never write.
    """

    def __init__(self, path: Path | str, *, writer: bool = True):
        self.path = Path(path)
        self.writer = writer
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "checkpoints" / "best.ckpt"

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run.

        Raises:
            RunError: the folder holds no run.
        """
        folder = cls(path)
        if not (folder.path / "recipe.yaml").is_file():
            raise RunError(
                f"{folder.path} is not a run: it holds no recipe.yaml. `spiketide train RECIPE` makes one."
            )
        return folder

    @contextlib.contextmanager
    def hold(self) -> Iterator[RunFolder]:
        """Make the folder and keep others out of it; the operating system lets go when the process dies.

        Raises:
            RunError: it is in use, or cannot be written.
        """
        if not self.writer:
            yield self
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"another process is using {self.path}. Wait for it, or choose another folder with --run."
            ) from error
        except OSError as error:
            raise refusal(self.path, error) from error
        except NotImplementedError as error:
            raise RunError(
                f"the file system of {self.path} cannot lock files; choose another with --run."
            ) from error
        try:
            yield self
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise refusal(self.path, error) from error
            raise
        finally:
            lock.release()

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one file of the run, whole or not at all."""
        path = self.path / name
        if self.writer:
            write(path, content)
        return path

    def write_json(self, name: str, content: Any) -> Path:
        """Write one JSON file of the run; a number that is not finite becomes ``null``."""
        return self.write(name, to_json(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read one JSON file of the run; ``None`` when it is not there.

        Raises:
            RunError: it is there and is not JSON.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from error

    def fill(self, model: torch.nn.Module) -> dict[str, Any]:
        """Put the best weights into a model of the run's recipe.

        Returns:
            the checkpoint.

        Raises:
            RunError: the checkpoint cannot be read, or is one of another network.
        """
        checkpoint = read_checkpoint(self.best)
        try:
            model.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise RunError(
                f"{self.best} does not fit the network of {self.path / 'recipe.yaml'}: {error} Was the recipe changed by hand, "
                "or a class of it since the training?"
            ) from error
        return checkpoint

    @property
    def begun(self) -> bool:
        """Whether there is something to lose: a whole epoch was trained."""
        return self.last.is_file() or self.best.is_file() or (self.path / "metrics.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return bool((self.read_json("metrics.json") or {}).get("finished"))


def new_name() -> str:
    """A name for a run that says when it began."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def latest(runs: Path, recipe: str, file: Path | None = None) -> Path | None:
    """The run of a recipe that was begun last, of those with a checkpoint; if none has one, of all.

    A run that has none yet, or that failed before, hides no other; a newer one that is passed over is named in the log.

    Args:
        runs: folder of all runs.
        recipe: short name.
        file: only runs of this recipe file: others may have its name.
    """
    found = [path.parent for path in (runs / recipe).glob("*/recipe.yaml")]
    if file is not None:
        found = [path for path in found if _began_with(path, file)]
    found.sort(key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns, reverse=True)
    for number, path in enumerate(found):
        if any((path / "checkpoints").glob("*.ckpt")):
            if number:
                log.warning(
                    "%s was begun later but has no checkpoint (no whole epoch yet, or it failed: see its run.log); taking %s",
                    found[0],
                    path,
                )
            return path
    return found[0] if found else None


def _began_with(run: Path, file: Path) -> bool:
    """Whether a run is of that recipe file, or does not say of which."""
    try:
        return json.loads((run / "versions.json").read_text()).get("file", str(file)) == str(file)
    except (OSError, ValueError, AttributeError):
        return True


def versions(seed: int) -> dict[str, Any]:
    """What a result depends on besides its recipe."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        **packages,
        "commit": _commit(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    """The commit of the package's own checkout; ``+`` when it has changes."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
