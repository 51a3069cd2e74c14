"""The page on ECG works as it stands, on records that are written here."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_wfdb_records import BEAT, wfdb, write

from spiketide.data.wfdb_records import WAVES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "bring_your_own_ecg.md"


def heart(folder: Path, name: str, seed: int) -> None:
    """60 s at 360 Hz: a bump for each wave of each beat, noise, and the marks."""
    rng = np.random.default_rng(seed)
    time = np.arange(60 * 360)
    signal = 0.01 * rng.normal(size=(len(time), 2))
    samples, symbols = [], []
    begin = 50
    while begin < len(time) - 400:
        places = {symbol: begin + int(1.44 * at) for at, symbol in BEAT if symbol in "pNt"}
        for symbol, height, width in (("p", 0.15, 12), ("N", 1.0, 6), ("t", 0.3, 25)):
            bump = height * np.exp(-0.5 * ((time - places[symbol]) / width) ** 2)
            signal += bump[:, None] * [1.0, 0.6]
        samples += [begin + int(1.44 * at) for at, _ in BEAT]
        symbols += [symbol for _, symbol in BEAT]
        begin += int(rng.integers(260, 330))
    path = write(folder, signal, 360.0, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wfdb.wrann(name, "abc", np.array(samples), symbol=symbols, write_dir=str(folder))
    (folder / f"{name}.abc").rename(f"{path}.pu0")


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of Lightning
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "records").mkdir()
    for number in range(3):
        heart(tmp_path / "records", f"r{number}", number)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "events a second" in capsys.readouterr().out
    assert float(names["report"].relative.max()) < 0.5
    labels = np.concatenate([y for _, y in names["train"]])
    assert len(names["train"]) == 22 and len(names["test"]) == 11 and set(labels) == {-1, *range(len(WAVES))}
    result = names["result"][0]
    assert result["test/loss"] < np.log(6)  # better than a guess
    assert 0.0 < result["test/rate"] < 0.5 and 0.2 < result["test/accuracy"] <= 1.0
