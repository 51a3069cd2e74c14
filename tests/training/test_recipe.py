"""Recipes: misspelt keys, overrides, what is written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_recipe as tiny
import torch
import yaml
from jsonargparse import ArgumentParser

from spiketide import recipes
from spiketide.data import Digits
from spiketide.errors import ParameterError, RecipeError
from spiketide.neurons import LIF
from spiketide.readouts import LastMembrane
from spiketide.training.recipe import Recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle.lr", "1"], r"unknown section 'modle'; did you mean 'model'\?"),
        (
            ["--model.lrr", "1"],
            r"argument of spiketide.training.Classification in model: 'lrr'; did you mean 'lr'\?",
        ),
        (
            ["--model.network.2.tua_mem", "1"],
            r"spiketide.neurons.LIF in model.network.2: 'tua_mem'; did you mean 'tau_mem'\?",
        ),
        (["--trainer.max_epoch", "1"], r"key in trainer: 'max_epoch'; did you mean 'max_epochs'\?"),
        (["--best.patiense", "1"], r"key in best: 'patiense'; did you mean 'patience'\?"),
        (
            ["--data.class_path", "spiketide.data.Digit"],
            r"class of spiketide.data: 'Digit'; did you mean 'Digits'\?",
        ),
        (["--data.class_path", "spiketid.data.Digits"], r"cannot import 'spiketid.data' .*PYTHONPATH=\."),
        (["--model.readout.class_pth", "x"], r"argument of spiketide.readouts.MaxMembrane .*'class_pth'"),
        (["--model.lr"], r"--model.lr needs a value"),
        (["model.lr", "1"], r"unexpected word 'model.lr'"),
        (["--model.network.17.n", "1"], r"model.network has 6 items, counted from 0"),
        (["--model.lr.x", "1"], r"model.lr is 0.03 and has no part 'x'"),
        (["--trainer.logger", "false"], r"unknown key in trainer: 'logger'"),
        (["--trainer.gradient_clip_val", "1"], r"trainer.gradient_clip_val: .* use model.clip"),
        (["--model.network.relu", "1"], r"network is a list, of which 'relu' names no item: its 6 items are"),
        (["--model.network.-1.n", "1"], r"of which '-1' names no item: .* as in --model.network.0\.$"),
        (["--model.network.6", "1"], r"^--model.network.6: model.network has 6 items, counted from 0\.$"),
        (["--seed", "4294967296"], r"seed should be from 0 to 4294967295, got 4294967296"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest(words: list[str], message: str, path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(path, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.lr", "fast"],
            r"^model: spiketide\.training\.Classification does not fit: .*lr.*\s.*float",
        ),
        (["--trainer.max_epochs", "2.5"], "max_epochs"),
        (
            ["--model.network.1.n_in", "[1]"],
            r"^model\.network\.1: spiketide\.synapses\.Dense does not fit: .*n_in",
        ),
        (
            ["--model.network.2.tau_mem", "long"],
            r"^model\.network\.2: spiketide\.neurons\.LIF does not fit: .*tau_mem",
        ),
        (
            ["--model.network.2.learn", "tau_mem, threshold"],
            r"LIF does not fit: learn should be a list, got 'tau_mem, threshold'\. Write for example \[tau_mem, threshold\]; "
            r"on the command line --model\.network\.2\.learn '\[tau_mem, threshold\]'\.$",
        ),
        (["--model.betas", "0.9"], r"betas should be a list, got 0\.9\. Write for example \[0\.9, 0\.999\];"),
        (["--model.regularisers", "none"], r"regularisers should be a list, got 'none'\."),
        (["--best.mode", "largest"], "max"),
        (["--threads", "0"], "threads"),
        (["--model.readout", "spiketide.losses.CrossEntropy"], "readout"),
    ],
)
def test_wrong_types(words: list[str], message: str, path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(path, words)


def test_a_value_out_of_range_is_the_constructors_own_error(path: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"^model\.network\.2: tau_mem expected finite values > 0, got -1"
    ):
        Recipe.load(path, ["--model.network.2.tau_mem", "-1"]).build()


def test_a_class_that_refuses_its_arguments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, **_: Any) -> None:
        raise ValueError("no disk")

    recipe = Recipe.load(path)
    monkeypatch.setattr(Digits, "__init__", refuse)
    with pytest.raises(RecipeError, match=r"^data: spiketide\.data\.Digits refused its arguments: .*no disk"):
        recipe.build()


def test_overrides_reach_every_constructor(path: Path) -> None:
    words = ["--model.network.2.tau_mem", "7.5", "--model.network.2.init_args.threshold=0.25", "--seed", "9"]
    words += ["--model.readout", "spiketide.readouts.LastMembrane", "--model.lr", "1e-3", "--data.limit=64"]
    words += ["--model.loss", "spiketide.losses.CrossEntropy", "--model.loss.label_smoothing", "0.25"]
    built = Recipe.load(path, words).build()
    neuron: Any = built.model.network[2]
    assert isinstance(neuron, LIF)
    assert float(neuron.tau_mem()) == 7.5 and float(neuron.threshold()) == 0.25
    assert isinstance(built.model.readout, LastMembrane)
    assert built.model.lr == 1e-3 and built.seed == 9 and built.data.limit == 64
    assert built.model.loss.label_smoothing == 0.25


def test_layers_in_layers_and_initialisers() -> None:
    changed = tiny.content()
    layers = [
        {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 20, "n_out": 20}},
        {"class_path": "spiketide.neurons.LIF", "init_args": {"n": 20}},
    ]
    inner = {"class_path": "spiketide.training.stack", "init_args": {"layers": layers}}
    network = changed["model"]["init_args"]["network"]
    network.insert(3, {"class_path": "spiketide.compose.Residual", "init_args": {"layer": inner}})
    network[2]["init_args"]["tau_mem"] = {
        "class_path": "spiketide.init.Uniform",
        "init_args": {"low": 5.0, "high": 6.0},
    }
    recipe = Recipe(changed, name="nested")
    built: Any = recipe.build().model.network
    assert isinstance(built[3].layer[1], LIF)
    taus = built[2].tau_mem()
    assert taus.shape == (20,) and 5.0 <= float(taus.min()) < float(taus.max()) <= 6.0
    assert Recipe(recipe.settings, name="again").yaml == recipe.yaml


def test_the_resolved_recipe_is_complete_and_a_recipe(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path, ["--model.lr", "0.5"])
    written = recipe.settings
    assert written["model"]["init_args"]["betas"] == [0.9, 0.999]  # defaults are written out
    assert written["model"]["init_args"]["network"][2]["init_args"]["reset"] == "soft"
    assert written["trainer"]["accumulate_grad_batches"] == 1
    again = tmp_path / "again.yaml"
    again.write_text(recipe.yaml)
    assert Recipe.load(again).yaml == recipe.yaml


def test_the_seed_decides_the_weights_and_the_data(tmp_path: Path) -> None:
    changed = tiny.content()
    del changed["data"]["init_args"]["seed"]
    path = tiny.write(tmp_path / "free.yaml", changed)
    one, same, other = (Recipe.load(path, ["--seed", seed]).build() for seed in ("1", "1", "2"))
    weights = [built.model.network[1].weight for built in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert [built.data.seed for built in (one, same, other)] == [1, 1, 2]
    assert Recipe(tiny.content(), name="tiny").build().data.seed == 5  # what a recipe says stays


def test_reading(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits/latency_lif'"):
        recipes.find("digits/latency_lfi")
    with pytest.raises(RecipeError, match="no recipe file"):
        recipes.find(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(RecipeError, match="cannot read"):
        recipes.read(broken)
    broken.write_text("a:\n\tb: 1")
    with pytest.raises(RecipeError, match=r'(?s)cannot read.*broken\.yaml", line 2'):
        recipes.read(broken)
    broken.write_text("seed: 1\nmodel:\n  a: 1\n  b: 2\n  a: 3\nbest: {a: 1}\n")
    with pytest.raises(RecipeError, match=r"gives 'a' twice in one place, in lines 3 and 5"):
        recipes.read(broken)
    broken.write_text("seed: 1\nbest: &one {mode: max}\ntrainer:\n  <<: *one\n  mode: min\n")
    assert recipes.read(broken)["trainer"] == {"mode": "min"}  # what YAML itself overrides
    broken.write_text("- 1")
    with pytest.raises(RecipeError, match="mapping of sections"):
        recipes.read(broken)
    broken.write_text(yaml.safe_dump({"seed": 1}))
    with pytest.raises(RecipeError, match="no section 'data'"):
        Recipe.load(broken)


def test_claims(tmp_path: Path) -> None:
    changed = tiny.content()
    assert Recipe(tiny.content(), name="tiny").claim is None
    changed["claim"] = {
        "paper": "A 2020",
        "where": "Table 1",
        "metric": "test_accuracy",
        "value": 0.9,
        "tolerance": 0.01,
    }
    claim = Recipe(changed, name="tiny").claim
    assert claim is not None and (claim.value, claim.tolerance) == (0.9, 0.01)
    changed["claim"]["vlaue"] = 1
    with pytest.raises(RecipeError, match="did you mean 'value'"):
        Recipe(changed, name="tiny")


def test_a_class_of_the_wrong_kind_is_named_with_its_place(path: Path) -> None:
    layer = {"class_path": "spiketide.init.Normal", "init_args": {"mean": 1.0, "std": 1.0}}
    words = ["--model.network.3", yaml.safe_dump({"class_path": "spiketide.compose.Residual"})]
    words += ["--model.network.3.layer", yaml.safe_dump(layer)]
    with pytest.raises(
        RecipeError, match=r"(?s)^model\.network\.3: spiketide\.compose\.Residual .*layer.*init\.Normal"
    ):
        Recipe.load(path, words)


def untold(n: int = 3):  # type: ignore[no-untyped-def]
    """A function that does not say what it makes."""


@pytest.mark.parametrize("target", ["test_recipe.untold", "spiketide.layer.Layer"])
def test_what_makes_no_object_is_refused(target: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(RecipeError, match=rf"^model\.network\.2: {target} makes no object"):
        Recipe.load(path, ["--model.network.2", yaml.safe_dump({"class_path": target, "init_args": {}})])


class Untyped(LIF):
    """A neuron whose author gave no types."""

    def __init__(self, n, size: int = 1, **common: Any) -> None:  # type: ignore[no-untyped-def]
        super().__init__(n, **common)


def test_a_class_without_types_is_named_with_its_argument(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    wanted = r"^model\.network\.2: test_recipe\.Untyped does not say of which type its argument 'n' is.* `n: int`\.$"
    with pytest.raises(RecipeError, match=wanted):
        Recipe.load(path, ["--model.network.2", "{class_path: test_recipe.Untyped, init_args: {n: 20}}"])


def test_what_was_overridden_is_kept(path: Path) -> None:
    words = [
        "--model.init_args.lr",
        "0.5",
        "--model.lr=0.1",
        "--seed",
        "9",
        "--threads",
        "1",
        "--data.root",
        "/x",
    ]
    words += [
        "--trainer.max_epochs",
        "3",
        "--claim",
        "{paper: a, where: b, metric: c, value: 1, tolerance: 0}",
    ]
    found = Recipe.load(path, words).overridden
    claim = "claim={paper: a, where: b, metric: c, value: 1, tolerance: 0}"
    assert found == ("model.lr=0.1", claim)  # three epochs is what the recipe says itself
    assert (
        Recipe.load(path, ["--about", "x"]).overridden == Recipe(tiny.content(), name="tiny").overridden == ()
    )


def test_every_class_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    parse = ArgumentParser.parse_object

    def counted(self: ArgumentParser, value: Any, *args: Any, **options: Any) -> Any:
        seen.append(1)
        return parse(self, value, *args, **options)

    def classes(node: Any) -> int:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return ("class_path" in node if isinstance(node, dict) else 0) + sum(map(classes, children))

    monkeypatch.setattr(ArgumentParser, "parse_object", counted)
    deep = "timit/yin2021_srnn"  # a class in a class in a class, seven times
    Recipe.load(deep)
    # a default that is a class is filled in by jsonargparse itself: a parse or two for each
    assert len(seen) <= 4 * classes(recipes.read(recipes.find(deep)[1]))
