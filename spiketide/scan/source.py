"""Where printed kernels live: one file per kernel in the user's cache folder.

The compilers' own caches need a real file beside which (Numba) or from whose text (Triton) they keep machine code, so the
printed source is written once, atomically, under a name that is a digest of its content.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import ModuleType

import platformdirs

from ..errors import EngineError

_log = logging.getLogger(__name__)
_lock = threading.RLock()


@functools.lru_cache(maxsize=1)
def cache_folder() -> Path:
    """The folder for printed kernels: the user's cache folder, or a private temporary one where that is not writable."""
    folder = Path(platformdirs.user_cache_dir("spiketide", appauthor=False)) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _log.warning("%s is not writable (%s): kernels are compiled anew in every process.", folder, error)
        folder = Path(tempfile.mkdtemp(prefix="spiketide-kernels-"))
    return folder


def load_source(text: str, stem: str, depends: tuple[Path, ...] = ()) -> ModuleType:
    """Import a printed module, written to the cache folder if it is new.

    Args:
        text: Python source.
        stem: readable beginning of the file name.
        depends: files whose content the compiled code also depends on; they enter the digest.
    """
    digest = hashlib.sha256(text.encode())
    for path in depends:
        digest.update(path.read_bytes())
    name = f"{stem}_{digest.hexdigest()[:20]}"
    full = f"spiketide_printed.{name}"
    if full in sys.modules:
        return sys.modules[full]
    path = cache_folder() / f"{name}.py"
    with _lock:
        if full in sys.modules:
            return sys.modules[full]
        if not path.exists() or path.read_text() != text:
            _write(path, text)
        spec = importlib.util.spec_from_file_location(full, path)
        if spec is None or spec.loader is None:  # pragma: no cover - a .py path always has a loader
            raise EngineError(f"cannot load the printed kernel {path}.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[full] = module
    return module


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise EngineError(
            f"cannot write the compiled kernels' folder {path.parent}: {error}. Make room there, or delete the folder."
        ) from error
