"""Real data, ready to train on: :class:`~spiketide.data.base.DataModule` and one file a data set.

The names are imported on first use: Lightning, which the modules stand on, costs seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .array_file import ArrayFile as ArrayFile
    from .arrays import ArrayData as ArrayData
    from .augment_sound import SpecAugment as SpecAugment
    from .augment_sound import SpecWarp as SpecWarp
    from .augment_sound import WaveAugment as WaveAugment
    from .base import Batch as Batch
    from .base import DataModule as DataModule
    from .base import Samples as Samples
    from .braille import Braille as Braille
    from .collate import collate as collate
    from .digits import Digits as Digits
    from .download import data_root as data_root
    from .events import EventFrames as EventFrames
    from .features import DecibelMel as DecibelMel
    from .features import DeltaMel as DeltaMel
    from .features import LogMel as LogMel
    from .fsdd import FSDD as FSDD
    from .fsdd import FSDDClips as FSDDClips
    from .fsdd_spikes import SpikingFSDD as SpikingFSDD
    from .heidelberg import SHD as SHD
    from .heidelberg import SSC as SSC
    from .heidelberg import SpikeFile as SpikeFile
    from .mnist import MNIST as MNIST
    from .mnist import FashionMNIST as FashionMNIST
    from .qtdb import QTDB as QTDB
    from .randman import Randman as Randman
    from .soli import SoLi as SoLi
    from .speech_commands import SpeechCommands as SpeechCommands
    from .streaming_mel import StreamingMel as StreamingMel
    from .timit import TIMIT as TIMIT
    from .wfdb_records import Annotations as Annotations
    from .wfdb_records import Record as Record
    from .wfdb_records import read_record as read_record
    from .wfdb_records import wave_labels as wave_labels

_HOME = {
    "Annotations": "wfdb_records",
    "ArrayData": "arrays",
    "ArrayFile": "array_file",
    "Batch": "base",
    "Braille": "braille",
    "DataModule": "base",
    "DecibelMel": "features",
    "DeltaMel": "features",
    "Digits": "digits",
    "EventFrames": "events",
    "FSDD": "fsdd",
    "FSDDClips": "fsdd",
    "FashionMNIST": "mnist",
    "LogMel": "features",
    "MNIST": "mnist",
    "QTDB": "qtdb",
    "Randman": "randman",
    "Record": "wfdb_records",
    "SHD": "heidelberg",
    "SSC": "heidelberg",
    "SpecAugment": "augment_sound",
    "SpecWarp": "augment_sound",
    "SpeechCommands": "speech_commands",
    "SpikeFile": "heidelberg",
    "SpikingFSDD": "fsdd_spikes",
    "StreamingMel": "streaming_mel",
    "TIMIT": "timit",
    "Samples": "base",
    "SoLi": "soli",
    "WaveAugment": "augment_sound",
    "collate": "collate",
    "data_root": "download",
    "read_record": "wfdb_records",
    "wave_labels": "wfdb_records",
}

# ``collate`` names both the function and its file; the import system would put the file here when any
# module of the package imports it, so the function is bound eagerly. It needs nothing but torch.
from .collate import collate as collate  # noqa: E402

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
