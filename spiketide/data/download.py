"""Where data lives, and how it gets there: found under a root, else downloaded whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError

if TYPE_CHECKING:
    from requests import Response

log = logging.getLogger("spiketide")

ENVIRONMENT = "SPIKETIDE_DATA"
"""The environment variable that names the data folder."""

RETRIES = 2
"""Further attempts after a failed download; each goes on where the last one stopped."""

PATIENCE = 5.0
"""Seconds of waiting for another process's download before a line says so."""


class RemoteFile(NamedTuple):
    """A file of a data set: where it belongs, where it comes from, and how to know it."""

    path: str
    """Place under the data root, with forward slashes."""
    url: str
    size: int
    """Bytes, told to whoever must fetch the file by hand; 0: not known."""
    sha256: str | None
    """Checked once, after the download. ``None``: the caller verifies what is inside."""


LOCK = ".download.lock"
"""Held in a folder while something is downloaded into it."""


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets, one sub-folder each.

    ``root`` when given, else the environment variable ``SPIKETIDE_DATA``, else the user's cache folder.

    Example:
        >>> from spiketide.data import data_root
        >>> data_root("/data").as_posix()
        '/data'
    """
    chosen = root or os.environ.get(ENVIRONMENT)
    return Path(chosen).expanduser() if chosen else user_cache()


def user_cache() -> Path:
    """The user's cache folder for this library, as the operating system has it. It may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("spiketide", appauthor=False)


def fetch(files: Sequence[RemoteFile], root: Path, *, title: str, hint: str = "") -> list[Path]:
    """Make every file present under ``root`` and return the paths.

    A file that is there is left alone: its reader verifies it. A missing one is downloaded to
    ``<name>.part``, goes on from there after an interruption, is checked against its SHA256, and only then
    gets its name, in one move. Two processes do not download the same folder at once: the second waits and
    finds the files.

    Args:
        files: what is needed.
        root: the data folder.
        title: the data set's name, for messages.
        hint: another way to put the data there by hand, for the message.

    Raises:
        DataError: not there and not to be had; the message says which files to put where.
    """
    paths = [root / file.path for file in files]
    for file, path in zip(files, paths, strict=True):
        if not path.is_file():
            new = [folder for folder in path.parents if not folder.exists()]
            try:
                _download(file, path)
            except Exception as problem:
                _tidy(new)
                why = _explain(problem)
                if why is None:
                    raise
                raise _missing(files, root, title, why, hint) from problem
    return paths


def _tidy(new: Sequence[Path]) -> None:
    """Remove folders that were made for a download that failed, the innermost first, unless something lies there."""
    for folder in new:
        with contextlib.suppress(OSError):
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()


def _missing(files: Sequence[RemoteFile], root: Path, title: str, why: str, hint: str) -> DataError:
    """The error that says which files to put where."""
    lines = [
        f"{title} is not complete under {root}, and it could not be downloaded: {why}",
        "Put these files there by hand, under exactly these names:",
    ]
    for file in files:
        if not (root / file.path).is_file():
            size = f"  {file.size:,} bytes" if file.size else ""
            digest = f", sha256 {file.sha256}" if file.sha256 else ""
            lines.append(f"  {root / file.path}{size}{digest}\n    from {file.url}")
    if hint:
        lines.append(hint)
    lines.append(
        f"or set the environment variable {ENVIRONMENT} (or the argument root) to a folder that holds them "
        f"as {', '.join(sorted({file.path.split('/')[0] + '/' for file in files}))}."
    )
    return DataError("\n".join(lines))


def _download(file: RemoteFile, path: Path) -> None:
    import pooch

    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent / LOCK):
        if path.is_file():  # another process was faster
            return
        pooch.create(
            path=path.parent,
            base_url="",
            registry={path.name: file.sha256},
            urls={path.name: file.url},
            retry_if_failed=RETRIES,
        ).fetch(path.name, downloader=_Resuming(path.with_name(path.name + ".part")))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; who has to wait for another process says so once, and waits on."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.info("waiting for another process, which downloads into %s (it holds %s)", path.parent, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _explain(problem: Exception) -> str | None:
    """What to tell the user about a failed download; ``None`` when it is a mistake of the program."""
    from requests.exceptions import RequestException

    if isinstance(problem, RequestException):
        return f"no answer or a broken one from the server ({problem})."
    if isinstance(problem, OSError):
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full ({problem})."
        return f"the folder cannot be written ({problem})."
    if isinstance(problem, ValueError) and "hash" in str(problem):
        return f"the file that came is not the right one ({problem})."
    return None


class _Resuming:
    """A pooch downloader that keeps what it has in ``part`` and asks the server only for the rest."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        import requests
        from tqdm.auto import tqdm

        have = self.part.stat().st_size if self.part.is_file() else 0
        # Identity: a server that labels a .gz file as content encoding would have it unpacked under way.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=30) as response:
            if have and not self._goes_on(response, have):
                have = 0
            if response.status_code == 416:  # the part is longer than the file: it is of another file
                self.part.unlink()
                raise requests.ConnectionError(
                    f"{url} has fewer bytes than {self.part}, which is removed now"
                )
            response.raise_for_status()
            total = have + int(response.headers.get("Content-Length", 0))
            with (
                self.part.open("ab" if have else "wb") as out,
                tqdm(
                    total=total or None, initial=have, unit="B", unit_scale=True, desc=self.part.stem
                ) as bar,
            ):
                for chunk in response.iter_content(chunk_size=1 << 16):
                    out.write(chunk)
                    bar.update(len(chunk))
        if self.part.stat().st_size < total:
            raise requests.ConnectionError(f"{url} ended after {self.part.stat().st_size} of {total} bytes")
        os.replace(self.part, output_file)

    @staticmethod
    def _goes_on(response: Response, have: int) -> bool:
        """Whether the answer is the rest that was asked for, not the whole file again."""
        return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
