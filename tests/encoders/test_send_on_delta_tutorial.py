"""The Python of the tutorial on send-on-delta runs as it stands, and its figures are what it prints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "send_on_delta.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLES = [text for text in re.findall(r"\n\n```\n(.*?)```", PAGE, re.DOTALL) if text.count("axes,") >= 2]
assert len(TABLES) == 2
FIRST, IDENTITY, NETWORK, RANDOM, SPEECH, FIGURE = CODE
CHATTER = "vectors, all at once"
"""Its figures are those of a runaway: they depend on the last bit."""


def rows(text: str) -> list[tuple[str, list[float]]]:
    found = re.findall(r"^([a-z, ]+?) {2,}([\d. inf]+)$", text, re.MULTILINE)
    return [(name, [float(value) for value in values.split()]) for name, values in found]


def same(printed: str, page: str) -> None:
    ours, theirs = rows(printed), rows(page)
    assert [name for name, _ in ours] == [name for name, _ in theirs] and len(ours) >= 8
    for (name, now), (_, written) in zip(ours, theirs, strict=True):
        if name != CHATTER:
            assert now == pytest.approx(written, rel=0.03, abs=1.0), name


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg", force=True)
    return {}


def test_the_first_blocks_print_what_the_page_says(
    space: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(FIRST, space)
    printed = capsys.readouterr().out.strip()
    assert f"`{printed}`" in PAGE
    exec(IDENTITY, space)
    assert "This is about 1e-15" in PAGE and float(capsys.readouterr().out) < 1e-14
    exec(NETWORK, space)
    count, equal = capsys.readouterr().out.split()
    assert equal == "True" and f"`{count} True`" in PAGE


def test_less_of_it_says_the_same(space: dict[str, Any]) -> None:
    """A quarter of the signal, fewer steps of delta, and in place of the speech the random signal: all of the code but the reading."""
    exec(FIRST.replace("seconds=20", "seconds=5"), space)
    assert RANDOM.count("2.0, 10)") == 1
    assert RANDOM.count("0.8, 0.9, 0.95, 0.98") == 1
    exec(RANDOM.replace("2.0, 10)", "2.0, 6)").replace("0.8, 0.9, 0.95, 0.98", "0.95, 0.98"), space)
    space["spoken"] = space["random"][8]
    exec(FIGURE, space)
    assert Path("send_on_delta.svg").stat().st_size > 20_000
    space["plt"].close("all")
    for channels in (2, 8):
        curves, cost = space["random"][channels], space["cost"]
        many = {name: cost(curve, 0.1) for name, curve in curves.items()}
        assert many["vectors"] < 0.8 * many["axes, early"] < 0.8 * many["axes"]
        assert many["vectors, leaky"] > many["vectors"] and many[CHATTER] > 50 * many["vectors"]
        assert np.isinf(many["no lateral"]) and curves["no lateral"][:, 1].min() > 0.6
        assert cost(curves["no lateral, fitted"], 0.3) > 10 * cost(curves["vectors"], 0.3)


def test_cost_reads_between_points(space: dict[str, Any]) -> None:
    exec(FIRST.split("past, signal")[0] + RANDOM.split("random = {}")[0], space)
    line = np.array([[1.0, 1.0], [100.0, 0.01]])  # events * error = 1
    assert [space["cost"](line[::k], 0.1) for k in (1, -1)] == pytest.approx([10.0, 10.0])
    assert space["cost"](line, 2.0) == 1.0 and np.isinf(space["cost"](line, 0.001))


@pytest.mark.slow
def test_the_tables_are_what_the_code_prints(
    space: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(FIRST, space)
    capsys.readouterr()
    exec(RANDOM, space)
    same(capsys.readouterr().out, TABLES[0])
    if os.environ.get("SPIKETIDE_DATA"):
        exec(SPEECH, space)
        same(capsys.readouterr().out, TABLES[1])
        assert space["speech"](11).shape[1] == 8


@pytest.mark.skipif(not os.environ.get("SPIKETIDE_DATA"), reason="needs FSDD: set SPIKETIDE_DATA")
def test_the_speech_block(space: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """On three steps of delta: vectors spare events on speech too, and no test recording is read."""
    exec(
        FIRST.split("past, signal")[0] + RANDOM.split("random = {}")[0].replace("2.0, 10)", "0.5, 3)"), space
    )
    exec(SPEECH, space)
    printed = dict(rows(capsys.readouterr().out))
    assert printed["vectors"][2] < 0.6 * printed["axes, turned"][2] < 0.6 * printed["axes, early"][2]
    assert "speech(10), speech(11)" in SPEECH and space["data"].official_test == 5
