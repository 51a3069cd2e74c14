"""The best checkpoint of a run as a file to run from, where that loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from ..errors import ParameterError, RunError
from ..timing import IntensityToLatency, Network, PixelTimes, TimingLayer, pack
from .folder import RunFolder
from .run import load


def export_run(folder: RunFolder, to: Path) -> dict[str, Any]:
    """Write the best checkpoint of a run with :func:`spiketide.timing.pack`: one bit for each weight.

    Args:
        folder: a run of ``SingleSpike`` whose layers are binary.
        to: the file; one that is there already is never overwritten.

    Returns:
        ``run``, ``file``, its size in ``bytes``, how many ``weights`` it holds, and what they take as 32-bit numbers,
        ``float32_bytes``.

    Raises:
        RunError: no checkpoint yet, a file that is there already, or a network that bits cannot hold: the message says why.
        DataError: the file cannot be written.
    """
    if to.exists():
        raise RunError(f"{to} exists already: name another file with --to, or delete it first.")
    if not folder.best.is_file():
        raise RunError(
            f"{folder.path} has no best checkpoint yet; go on with: spiketide train --resume {folder.path}"
        )
    with isolate_rng():
        model = load(folder).build().model
    network = model.network
    if not isinstance(network, Network):
        raise RunError(
            f"{folder.path} cannot be exported: its network is a {type(network).__name__}, and export writes what loses nothing: "
            "networks of spike times with binary weights (task SingleSpike, binary: true). Checkpoints hold all others."
        )
    folder.fill(model)
    encoder = model.encoder
    try:
        size = pack(
            network, to, encoder=encoder if isinstance(encoder, (IntensityToLatency, PixelTimes)) else None
        )
    except ParameterError as error:
        raise RunError(f"{folder.path} cannot be exported: {error}") from error
    weights = sum(layer.weight.numel() for layer in network if isinstance(layer, TimingLayer))
    return {
        "run": str(folder.path),
        "file": str(to),
        "bytes": size,
        "weights": weights,
        "float32_bytes": 4 * weights,
        "encoder": isinstance(encoder, (IntensityToLatency, PixelTimes)),
    }
