"""The moving average of the weights: what is kept and tested, what training goes on from, and a run that was cut short."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny
import torch
from torch import Tensor

from spiketide.cli import main
from spiketide.errors import ParameterError
from spiketide.neurons import LIF
from spiketide.readouts import SpikeCount
from spiketide.training import Classification
from spiketide.training.folder import RunFolder
from spiketide.training.recipe import Recipe
from spiketide.training.run import train

DECAY = 0.8


def averaged() -> Recipe:
    content = tiny.content()
    content["model"]["init_args"]["average"] = DECAY
    return Recipe(content, name="tiny")


def test_the_average_is_validated_kept_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    validated: list[dict[str, Tensor]] = []
    end, look = Classification.on_train_batch_end, Classification.validation_step

    def after(self: Classification, *arguments: Any) -> None:
        end(self, *arguments)
        seen.append({name: value.detach().clone() for name, value in self.named_parameters()})

    def validate(self: Classification, batch: Any, batch_idx: int) -> Any:
        validated.append({name: value.detach().clone() for name, value in self.named_parameters()})
        return look(self, batch, batch_idx)

    monkeypatch.setattr(Classification, "on_train_batch_end", after)
    monkeypatch.setattr(Classification, "validation_step", validate)
    folder = RunFolder(tmp_path / "run")
    train(averaged(), folder)
    average: dict[str, Tensor] = {}
    for weights in seen:
        for name, value in weights.items():
            average[name] = DECAY * average[name] + (1 - DECAY) * value if name in average else value
    last = torch.load(folder.last, weights_only=True)
    for name, value in average.items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, seen[-1][name]), name
        torch.testing.assert_close(last["current_model_state"][name], seen[-1][name], rtol=0, atol=0)
        torch.testing.assert_close(validated[-1][name], value, rtol=1e-5, atol=1e-6)
    # a run without it takes the same steps
    steps = len(seen)
    train(tiny.recipe(), RunFolder(tmp_path / "plain"))
    for with_it, without in zip(seen[:steps], seen[steps:], strict=True):
        for name, value in with_it.items():
            assert torch.equal(value, without[name]), name


def test_a_run_that_was_cut_short_goes_on_to_the_same_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    train(averaged(), whole)
    step = Classification.training_step

    def press(self: Classification, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    path = tmp_path / "tiny.yaml"
    path.write_text(averaged().yaml)
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "training_step", press)
        with pytest.raises(BaseException):  # noqa: B017
            train(Recipe.load(path), cut)
    assert main(["train", "--resume", str(cut.path)]) == 0
    for name in ("last", "best"):
        one, other = (torch.load(getattr(run, name), weights_only=True) for run in (whole, cut))
        for part in ("state_dict", "current_model_state"):
            for key, value in one[part].items():
                assert torch.equal(value, other[part][key]), (name, part, key)


def test_shares_that_make_no_sense() -> None:
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ParameterError, match="average above 0 and below 1"):
            Classification([LIF(3)], SpikeCount(), average=share)
