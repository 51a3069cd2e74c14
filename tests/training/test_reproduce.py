"""Seeds, their mean, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny

from spiketide.errors import RecipeError, RunError
from spiketide.training import reproduce as package_reproduce
from spiketide.training.classification import Classification
from spiketide.training.judgement import judge
from spiketide.training.recipe import Claim
from spiketide.training.reproduce import reproduce, summarise

CLAIM = Claim("Someone 2020", "Table 1", "test_accuracy", 0.90, 0.01)


@pytest.mark.parametrize(
    ("mean", "interval", "verdict"),
    [
        (0.905, None, "reproduced"),
        (0.890, None, "reproduced"),
        (0.92, None, "above"),
        (0.88, None, "not reproduced"),
        (0.88, (0.86, 0.895), "open"),
        (0.88, (0.87, 0.889), "not reproduced"),
    ],
)
def test_verdicts(mean: float, interval: Any, verdict: str) -> None:
    word, sentence = judge(mean, interval, CLAIM)
    assert word == verdict
    assert f"{mean:.4f}" in sentence and "Someone 2020 (Table 1) test_accuracy 0.9" in sentence


def test_without_a_claim() -> None:
    assert judge(0.9, None, None)[0] == "no claim"


def test_what_was_overridden_is_said() -> None:
    for mean in (0.8, 0.9, 0.95):
        plain = judge(mean, None, CLAIM)
        word, sentence = judge(mean, None, CLAIM, ["model.lr=0.1", "trainer.max_epochs=1"])
        assert word == plain[0] and sentence.startswith(plain[1])
        assert sentence.endswith(
            " Overridden: model.lr=0.1, trainer.max_epochs=1; the claim is one of the recipe without that."
        )
    assert judge(0.9, None, None, ["model.lr=0.1"]) == judge(0.9, None, None)
    rows = [{"seed": 0, "run": "", "test_accuracy": 0.9}]
    assert summarise(rows, CLAIM, ["model.lr=0.1"])["overridden"] == ["model.lr=0.1"]
    assert summarise(rows, CLAIM)["overridden"] == []


def test_interval_by_hand() -> None:
    rows = [{"seed": s, "run": "", "test_accuracy": a} for s, a in enumerate([0.90, 0.92, 0.94])]
    result = summarise(rows, None)
    # t(0.975, 2 degrees of freedom) = 4.3027; sd = 0.02; half = 4.3027 * 0.02 / sqrt(3)
    assert result["sd"] == pytest.approx(0.02)
    assert result["interval"] == pytest.approx([0.92 - 0.049683, 0.92 + 0.049683], abs=1e-5)
    one = summarise(rows[:1], None)
    assert one["interval"] is None and one["sd"] == 0.0


def test_a_claim_on_something_not_measured() -> None:
    with pytest.raises(RecipeError, match="did you mean 'test_accuracy'"):
        summarise([{"seed": 0, "test_accuracy": 0.5}], Claim("x", "y", "test_acuracy", 0.5, 0.1))


def test_finished_seeds_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tiny.content()
    changed["trainer"]["max_epochs"] = 1
    path = str(tiny.write(tmp_path / "tiny.yaml", changed))
    first = reproduce(path, seeds=1, runs=tmp_path / "runs")
    assert [row["seed"] for row in first["runs"]] == [3]  # counted from the recipe's own
    trained = []
    step = Classification.training_step

    def count(self: Classification, batch: Any, batch_idx: int) -> Any:
        trained.append(self)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "training_step", count)
    both = reproduce(path, seeds=2, runs=tmp_path / "runs")
    assert len(trained) == 3  # one epoch of three batches: seed 4 alone
    assert both["runs"][0]["value"] == first["runs"][0]["value"]
    assert both["mean"] == pytest.approx((both["runs"][0]["value"] + both["runs"][1]["value"]) / 2)
    assert (tmp_path / "runs" / "tiny" / "reproduce" / "seed-4" / "report.html").is_file()
    with pytest.raises(RunError, match="another recipe"):
        reproduce(path, ["--model.lr", "0.5"], seeds=1, runs=tmp_path / "runs")
    assert package_reproduce is reproduce
