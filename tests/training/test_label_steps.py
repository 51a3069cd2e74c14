"""The page on labelling steps works as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketide.training.run import surroundings

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "label_steps.md"


@pytest.mark.skipif(not os.environ.get("SPIKETIDE_DATA"), reason="needs QTDB: set SPIKETIDE_DATA")
def test_the_blocks_run_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spiketide.data import QTDB

    small = QTDB.__init__

    def smaller(self: Any, **options: Any) -> None:
        small(self, limit=32, steps=200, **options)

    monkeypatch.setattr(QTDB, "__init__", smaller)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    with surroundings():
        for block in blocks:
            block = block.replace(
                "accelerator=", "enable_progress_bar=False, enable_model_summary=False, accelerator="
            )
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["trainer"].callback_metrics["train/loss"] < 1.8  # six classes by chance: 1.79
    y, _ = names["model"].network(torch.from_numpy(names["record"]).unsqueeze(1))
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line][-5:]
    assert said == [names["data"].class_names[label] for label in y[:5, 0].argmax(-1)]
