from __future__ import annotations

import gzip

import numpy as np
import pytest
from data_files import idx_bytes

from spiketide.data.idx import read_idx
from spiketide.errors import DataError


def test_bytes_and_integers_come_back(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(images)))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), images)
    numbers = np.array([1, -70000, 2**30], dtype=np.int32)
    (tmp_path / "plain").write_bytes(idx_bytes(numbers))
    back = read_idx(tmp_path / "plain")
    assert back.tolist() == numbers.tolist()
    assert back.dtype == np.int32


def test_truncated_gzip(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((100, 28, 28), np.uint8)))[:-40])
    with pytest.raises(
        DataError, match=r"a\.gz is truncated or corrupt: its gzip stream.*Delete it and run again"
    ):
        read_idx(path)


def test_flipped_byte_in_gzip(tmp_path):
    path = tmp_path / "a.gz"
    raw = bytearray(
        gzip.compress(idx_bytes(np.random.RandomState(0).randint(0, 255, (9, 9)).astype(np.uint8)))
    )
    raw[60] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_idx(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "this one with nothing"),
        (b"<html>not found", "begins with 00 00"),
        (bytes([0, 0, 8, 3, 0, 0]), "needs 16 bytes, the file has 6"),
        (idx_bytes(np.zeros((5, 4), np.uint8))[:-1], r"promises 32 bytes for sizes \(5, 4\), it has 31"),
        (idx_bytes(np.zeros((5, 4), np.uint8)) + b"x", "promises 32 bytes .* it has 33"),
    ],
)
def test_broken_headers_and_sizes(tmp_path, raw, words):
    for path, content in ((tmp_path / "plain", raw), (tmp_path / "zipped.gz", gzip.compress(raw))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)


def test_missing(tmp_path):
    with pytest.raises(DataError, match="it is not there"):
        read_idx(tmp_path / "none.gz")
