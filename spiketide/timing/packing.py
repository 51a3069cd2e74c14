"""Binary networks in a file with one bit for each weight."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import DataError, NonFiniteError, ParameterError
from .base import TimingLayer
from .conv import TimingConv2d
from .encode import IntensityToLatency
from .linear import TimingLinear
from .network import Network
from .psp import PSP, FixedSlope, Ramp, RampUpDown, ReL, Step
from .s4nn import PixelTimes
from .shaping import AveragePool2d, EarliestPool2d, Flatten, Silence

FORMAT = "spiketide one-spike network, packed"
VERSION = 1
STRUCTURE = "structure"

KERNELS: dict[type[PSP], tuple[str, ...]] = {
    Step: (),
    Ramp: ("rise",),
    RampUpDown: ("rise", "fall"),
    ReL: ("unit",),
    FixedSlope: ("start", "length"),
}
SHAPING: dict[type[nn.Module], tuple[str, ...]] = {
    EarliestPool2d: ("size",),
    AveragePool2d: ("size", "stop"),
    Flatten: (),
    Silence: ("p", "end"),
}
ENCODERS: dict[type[nn.Module], tuple[str, ...]] = {
    IntensityToLatency: ("steps", "span", "threshold", "exact"),
    PixelTimes: ("steps", "code"),
}


def pack(network: Network, path: str | Path, *, encoder: nn.Module | None = None) -> int:
    """Write a binary network into one file: a bit for each weight, a scale for each layer, and the structure.

    Nothing is lost that the membranes see: :func:`unpack` gives a network with the same spike times, to the bit. The real weights
    behind the signs, the learning rules and the optimiser are left out, so the file is for running, not for training on.

    The file is an uncompressed ``.npz``, which numpy reads without spiketide: ``structure`` (JSON as bytes), and for each layer
    that fires ``<name>.signs`` (``numpy.packbits`` of ``weight >= 0``, in the order of the weights) and ``<name>.scale``. It
    appears in one move: after an interruption either the old file stands there or the new one.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from spiketide.timing import Network, TimingLinear, pack, unpack
        >>> network = Network(TimingLinear(400, 300, binary=True), TimingLinear(300, 10, binary=True))
        >>> path = Path(tempfile.mkdtemp()) / "digits.npz"
        >>> size = pack(network, path)
        >>> size == path.stat().st_size, size < 123_000 // 8 + 2500  # bits, and the headers of a small archive
        (True, True)
        >>> times = torch.randint(0, 64, (5, 400)).float()
        >>> torch.equal(unpack(path)(times), network(times))
        True

    Args:
        network: of layers with ``binary=True``.
        path: of the file, by habit ``.npz``; it is written to exactly this name.
        encoder: how data become spike times, kept with it: ``IntensityToLatency`` or ``PixelTimes``.

    Returns:
        the size of the file, bytes.

    Raises:
        ParameterError: a layer with real weights, or one that the file knows no form for; the message names it.
        NonFiniteError: NaN among the weights or scales.
        DataError: the file cannot be written.
    """
    if not isinstance(network, Network):
        raise ParameterError(
            f"pack expected a spiketide.timing.Network, got {type(network).__name__}: nothing else has a packed form."
        )
    modules: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for name, module in network.named_children():
        if isinstance(module, TimingLayer):
            row, signs, scale = _packed(name, module)
            arrays[f"{name}.signs"], arrays[f"{name}.scale"] = signs, scale
        else:
            row = _settings(module, SHAPING, f"layer {name}")
        modules.append(row)
    structure = {
        "format": FORMAT,
        "version": VERSION,
        "network": modules,
        "encoder": None if encoder is None else _settings(encoder, ENCODERS, "the encoder"),
    }
    arrays[STRUCTURE] = np.frombuffer(json.dumps(structure, allow_nan=False).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    _write(Path(path), content.getvalue())
    return content.tell()


def unpack(path: str | Path) -> Network:
    """The network that :func:`pack` wrote: on the CPU, its weights 1 and -1 times the layer's scale.

    Args:
        path: of the file.

    Raises:
        DataError: no such file, not one of :func:`pack`, of a later version, or damaged.
    """
    structure, arrays = _read(Path(path))
    with _damaged(path):
        modules = []
        for number, row in enumerate(structure["network"]):
            word = row["kind"]
            if word in ("TimingLinear", "TimingConv2d"):
                modules.append(_unpacked(row, arrays[f"{number}.signs"], arrays[f"{number}.scale"]))
            else:
                modules.append(_made(row, SHAPING))
        return Network(*modules)


def packed_encoder(path: str | Path) -> nn.Module | None:
    """The encoder that was packed with a network; ``None`` if none was.

    Args:
        path: of the file.

    Raises:
        DataError: as :func:`unpack`.
    """
    structure, _ = _read(Path(path))
    with _damaged(path):
        row = structure["encoder"]
        return None if row is None else _made(row, ENCODERS)


# ------------------------------------------------------------------------------------------------- one layer


def _packed(name: str, layer: TimingLayer) -> tuple[dict[str, Any], Any, Any]:
    word = f"layer {name} ({type(layer).__name__})"
    if type(layer) not in (TimingLinear, TimingConv2d):
        raise ParameterError(f"{word} has no packed form; known: TimingLinear, TimingConv2d.")
    if not layer.binary:
        raise ParameterError(
            f"{word} has real weights, which one bit each cannot hold: packing is lossless or refused. Train it with binary=True."
        )
    if layer.weight.dtype not in (torch.float32, torch.float64):
        raise ParameterError(
            f"{word} has weights of {layer.weight.dtype}; float32 and float64 can be packed."
        )
    for what, value in (("weights", layer.weight), ("scale", layer.scale)):
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"{word}: NaN or Inf in its {what}: training diverged; take an earlier checkpoint."
            )
    row: dict[str, Any] = {"kind": type(layer).__name__, "n_in": layer.n_in, "n_out": layer.n_out}
    if isinstance(layer, TimingConv2d):
        window = layer.window
        row |= {
            "kernel": window.kernel[0],
            "padding": window.padding,
            "stride": window.stride,
            "groups": window.groups,
        }
    row |= {"psp": _settings(layer.psp, KERNELS, f"{word}: its kernel")}
    row |= {"stop": layer.stop, "threshold": layer.threshold, "exact": layer.exact}
    signs = np.packbits((layer.weight.detach() >= 0).flatten().cpu().numpy())
    return row, signs, layer.scale.detach().to(layer.weight.dtype).cpu().numpy()


def _unpacked(row: dict[str, Any], signs: Any, scale: Any) -> TimingLayer:
    options = dict(row)
    kind = {"TimingLinear": TimingLinear, "TimingConv2d": TimingConv2d}[options.pop("kind")]
    options["psp"] = _made(options["psp"], KERNELS)
    layer: TimingLayer = kind(**options, binary=True)
    n = layer.weight.numel()
    if signs.dtype != np.uint8 or signs.shape != ((n + 7) // 8,):
        raise ValueError(f"{n} weights do not lie in {signs.size} bytes")
    if scale.dtype not in (np.float32, np.float64) or scale.shape != () or not np.isfinite(scale):
        raise ValueError("a scale is one finite number")
    layer.to(torch.float64 if scale.dtype == np.float64 else torch.float32)
    ones = torch.from_numpy(np.unpackbits(signs, count=n)).view_as(layer.weight).to(layer.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(2 * ones - 1)
        layer.scale.copy_(torch.from_numpy(np.array(scale)))
    return layer


def _settings(thing: Any, known: dict[Any, tuple[str, ...]], word: str) -> dict[str, Any]:
    """Class and arguments of something that is made from its arguments alone."""
    kind = type(thing)
    if kind not in known:
        names = ", ".join(sorted(each.__name__ for each in known))
        raise ParameterError(f"{word} is {kind.__name__}, which has no packed form; known: {names}.")
    return {"kind": kind.__name__} | {name: getattr(thing, name) for name in known[kind]}


def _made(row: dict[str, Any], known: dict[Any, tuple[str, ...]]) -> Any:
    kind: Callable[..., Any] = {each.__name__: each for each in known}[row["kind"]]
    return kind(**{name: value for name, value in row.items() if name != "kind"})


# ------------------------------------------------------------------------------------------------- the file


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Make room or choose another place."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Structure and arrays; numbers only, nothing in the file is run."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"{path} cannot be read as a packed network: {error}. It is damaged, or no file that spiketide.timing.pack wrote."
        ) from error
    if STRUCTURE not in arrays:
        raise DataError(
            f"{path} is no packed network: it holds {', '.join(sorted(arrays)[:5]) or 'nothing'}."
        )
    with _damaged(path):
        structure: dict[str, Any] = json.loads(arrays.pop(STRUCTURE).tobytes())
        found, version = structure["format"], structure["version"]
    if found != FORMAT:
        raise DataError(f"{path} is no packed network: its format is {found!r}, expected {FORMAT!r}.")
    if version != VERSION:
        raise DataError(
            f"{path} is of version {version!r}, this spiketide reads {VERSION}: install a later one."
        )
    return structure, arrays


@contextlib.contextmanager
def _damaged(path: str | Path) -> Any:
    """What goes wrong in reading means that the file is not whole."""
    try:
        yield
    except (
        ParameterError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        UnicodeDecodeError,
    ) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is damaged: {what}. Write it anew with spiketide.timing.pack.") from error
