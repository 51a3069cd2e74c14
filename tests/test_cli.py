"""The command line: every verb, every refusal, and what stands last on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

import spiketide
from spiketide.cli import main
from spiketide.data import Digits

TINY: dict[str, Any] = {
    "about": "for the tests",
    "threads": 1,
    "data": {"class_path": "spiketide.data.Digits", "init_args": {"batch_size": 64, "limit": 320}},
    "model": {
        "class_path": "spiketide.training.Classification",
        "init_args": {
            "encoder": {"class_path": "spiketide.encoders.Latency", "init_args": {"steps": 6}},
            "network": [
                {"class_path": "torch.nn.Flatten"},
                {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 64, "n_out": 32}},
                {"class_path": "spiketide.neurons.LIF", "init_args": {"n": 32, "threshold": 0.3}},
                {"class_path": "spiketide.synapses.Dense", "init_args": {"n_in": 32, "n_out": 10}},
                {
                    "class_path": "spiketide.neurons.LeakyIntegrator",
                    "init_args": {"n": 10, "scale_input": False},
                },
            ],
            "readout": {"class_path": "spiketide.readouts.MeanMembrane"},
            "lr": 0.03,
        },
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe file in an empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    return "tiny.yaml"


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON line, which stands last."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def operations(run: Path) -> float:
    """Additions at synapses for an average test digit, from scikit-learn's pixels, the stored weights and a plain loop."""
    data = Digits(batch_size=64, limit=320)
    pixels = load_digits().images[data.split_indices["test"]].reshape(-1, 64) / 16.0
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weight, bias = (weights[f"network.1.{name}"].double().numpy() for name in ("weight", "bias"))
    decay = float(np.exp(-1.0 / 20.0))
    counted = 0
    for image in pixels:
        fires_at = np.where(image > 0, np.floor(5 * (1.0 - image) + 0.5), 6)
        v = np.zeros(32)
        for step in range(6):
            spikes = fires_at == step
            counted += 32 * int(spikes.sum())
            v = decay * v + weight @ spikes + bias
            fired = v > 0.3
            counted += 10 * int(fired.sum())
            v = v - 0.3 * fired
    return counted / len(pixels)


def test_train_test_report_diagnose(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[str] = []
    read = Digits.read

    def watch(self: Digits, part: Any) -> Any:
        touched.append(part)
        return read(self, part)

    monkeypatch.setattr(Digits, "read", watch)
    assert main(["train", recipe, "--json", "--model.lr", "0.02"]) == 0
    trained = result(capsys)
    run = Path(trained["run"])
    assert run.parent == Path("runs/tiny")
    assert trained["finished"] and trained["epochs"] == 2
    assert touched == ["train"]  # training never looks at the test data
    for name in ("recipe.yaml", "versions.json", "metrics.csv", "metrics.json", "run.log"):
        assert (run / name).stat().st_size > 0, name
    assert yaml.safe_load((run / "recipe.yaml").read_text())["model"]["init_args"]["lr"] == 0.02
    story = json.loads((run / "versions.json").read_text())
    assert story["recipe"] == "tiny" and story["seed"] == 0 and "torch" in story and story["machine"]["cores"]
    assert "epoch 1" in (run / "run.log").read_text()
    assert list((run / "tensorboard").glob("events.*"))

    assert main(["test", recipe, "--json"]) == 0  # a recipe's file or its name means its latest run
    tested = result(capsys)
    assert "test" in touched[1:] and not tested["stored"]
    assert tested["samples"] == 359
    assert tested["test_accuracy"] * 359 == pytest.approx(round(tested["test_accuracy"] * 359))
    assert tested["test_accuracy"] > 0.4  # ten classes, two epochs
    assert 0.005 < tested["firing_rate"] < 0.5
    assert tested["firing_rate"] == pytest.approx(tested["firing_rates"]["2"], rel=1e-5)
    assert tested["dense_operations"] == 6 * (64 * 32 + 32 * 10)
    assert tested["synaptic_operations"] == pytest.approx(operations(run), rel=1e-4)
    assert 20 * 32 < tested["synaptic_operations"] < tested["dense_operations"] / 2
    html = (run / "report.html").read_text()
    assert "tiny" in html and f"{tested['test_accuracy']:.4g}" in html

    before = len(touched)
    (run / "report.html").unlink()
    assert main(["test", str(run), "--json"]) == 0
    again = result(capsys)
    assert again["stored"] and again["test_accuracy"] == tested["test_accuracy"]
    assert len(touched) == before  # the stored result: the test data were not touched again
    assert main(["test", str(run), "--again", "--json"]) == 0
    assert result(capsys)["test_accuracy"] == tested["test_accuracy"]

    stored = (run / "test.json").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run), "--json"]) == 0
    assert Path(result(capsys)["report"]).is_file()
    assert (run / "test.json").read_text() == stored

    assert main(["diagnose", str(run), "--json"]) == 0
    diagnosis = result(capsys)
    assert diagnosis["verb"] == "diagnose" and diagnosis["layers"][0]["kind"] == "Dense"
    assert main(["train", recipe, "--run", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--model.lr", "1"]) == 2
    assert "keeps its own arguments" in capsys.readouterr().err
    assert main(["train", "tiny", "--resume", "--json"]) == 0
    assert result(capsys)["epochs"] == 2


def test_diagnose_a_recipe_that_is_silent(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", recipe, "--model.network.2.threshold", "1e6", "--json"]) == 0
    found = result(capsys)
    assert not found["healthy"] and "never fire" in found["messages"][0]


def test_demo_and_reproduce(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", recipe, "--trainer.max_epochs", "1", "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    last = json.loads(shown[-1])
    assert {"test_accuracy", "firing_rate", "seconds", "report"} <= last.keys()
    assert Path(last["report"]).is_absolute() and Path(last["report"]).is_file()
    words = ("test accuracy", "firing rate", "synaptic operations a sample", "seconds", "report")
    table = "\n".join(shown[:-1])
    assert all(word in table for word in words)
    assert main(["reproduce", recipe, "--seeds", "1", "--trainer.max_epochs", "1", "--json"]) == 0
    summary = result(capsys)
    assert summary["verdict"] == "no claim" and summary["mean"] == last["test_accuracy"]  # the same seed


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    out = capsys.readouterr().out
    listed = {row["recipe"]: row for row in json.loads(out.splitlines()[-1])["recipes"]}
    assert {"digits/latency_lif", "fsdd/recurrent_alif", "mnist/latency_lif"} <= listed.keys()
    assert all(row["about"] for row in listed.values())
    assert any(line.startswith("digits/latency_lif ") for line in out.splitlines())


def test_help_and_list_are_light() -> None:
    """Neither may wait for Lightning, jsonargparse or Numba."""
    code = (
        "import sys\nfrom spiketide.cli import main\nmain(['list'])\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'lightning', 'jsonargparse', 'numba', 'sklearn', 'matplotlib', 'scipy', 'librosa'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"spiketide {metadata.version('spiketide')}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "train needs a recipe"),
        (["train", "digits/latency_lfi"], "did you mean 'digits/latency_lif'?"),
        (["train", "none.yaml"], "no recipe file 'none.yaml'"),
        (["train", "tiny.yaml", "--modle.lr", "1"], "did you mean 'model'?"),
        (["train", "tiny.yaml", "--model.network.2.tua_mem", "1"], "did you mean 'tau_mem'?"),
        (["train", "tiny.yaml", "--resum", "x"], "did you mean --resume?"),
        (["train", "tiny.yaml", "--sed", "1"], "did you mean --seed?"),
        (["train", "--resume", "nowhere"], "neither a run folder nor a recipe"),
        (["train", "--resume"], "needs a run folder"),
        (["test", "nowhere"], "neither a run folder nor a recipe"),
        (["test", "nowhere", "--agian"], "did you mean '--again'?"),
        (["report", "nowhere"], "neither a run folder nor a recipe"),
        (["reproduce", "tiny.yaml", "--seeds", "0"], "--seeds should be 1 or more"),
        (["train", "tiny.yaml", "--best.metric", "val/acuracy"], "did you mean 'val/accuracy'?"),
        (["train", "tiny.yaml", "--seed", "-1"], "seed should be from 0 to 4294967295, got -1"),
        (
            ["train", "tiny.yaml", "--trainer.max_epochs", "0"],
            "trainer.max_epochs is 0, so nothing would be trained",
        ),
        (["demo", "tiny.yaml", "--trainer.max_steps", "0"], "trainer.max_steps is 0"),
        (["train", "tiny.yaml", "--trainer.devices", "0"], "trainer: Lightning refused its arguments"),
        (
            ["train", "tiny.yaml", "--trainer.accelerator", "gup"],
            "trainer.accelerator is 'gup', and this machine has none that torch can use",
        ),
        (["train", "tiny.yaml", "--trainer.gradient_clip_val", "1"], "use model.clip (norm or value)"),
        (
            ["train", "tiny.yaml", "--model.network.2.learn", "tau_mem"],
            "learn should be a list, got 'tau_mem'. Write for example [tau_mem]; on the command line "
            "--model.network.2.learn '[tau_mem]'.",
        ),
        (
            ["train", "tiny.yaml", "--model.network.x.tau_mem", "3"],
            "--model.network.x.tau_mem: model.network is a list, of which 'x' names no item: its 5 items are counted from 0, "
            "as in --model.network.0.",
        ),
    ],
)
def test_refusals_are_one_message_and_exit_code_2(
    words: list[str], message: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    last = json.loads(said.out.splitlines()[-1])
    assert last["verb"] == words[0] and message in last["error"]
    if "model.network" in message:
        assert len(last["error"]) < 250  # no dump of the recipe
    if "metric" not in message and "accuracy" not in message:
        assert not Path("runs").exists()  # what was refused left nothing behind


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_an_accelerator_that_is_not_there(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--trainer.accelerator", "gpu", "--json"]) == 2
    said = capsys.readouterr()
    assert "trainer.accelerator is 'gpu', and this machine has none" in said.err
    assert "--trainer.accelerator cpu" in said.err and "Traceback" not in said.err
    assert json.loads(said.out)["kind"] == "RecipeError" and not Path("runs").exists()
    # a run that came from elsewhere
    assert main(["train", recipe, "--trainer.max_epochs", "1", "--run", "here"]) == 0
    stored = Path("here/recipe.yaml")
    stored.write_text(stored.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    capsys.readouterr()
    assert main(["test", "here"]) == 2
    assert "or write accelerator: auto in here/recipe.yaml." in capsys.readouterr().err
    stored.write_text(stored.read_text().replace("accelerator: gpu", "accelerator: auto"))
    assert main(["test", "here"]) == 0


def test_a_broken_checkpoint_is_named(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--trainer.max_epochs", "1", "--run", "here"]) == 0
    best, last = (Path("here/checkpoints") / name for name in ("best.ckpt", "last.ckpt"))
    whole = best.read_bytes()
    for broken in (whole[: len(whole) // 2], b"nothing of ours", b""):
        best.write_bytes(broken)
        for verb in ("test", "energy", "diagnose", "stream"):
            capsys.readouterr()
            assert main([verb, "here", *([os.devnull] if verb == "stream" else []), "--json"]) == 2, verb
            said = capsys.readouterr()
            message = "cannot read here/checkpoints/best.ckpt: it is truncated or no checkpoint"
            assert message in said.err and "Traceback" not in said.err
            assert message in json.loads(said.out.splitlines()[-1])["error"]
    torch.save({"weights": 1}, best)
    assert main(["test", "here"]) == 2
    assert "holds no checkpoint of a training" in capsys.readouterr().err
    other = torch.load(last, weights_only=True)
    other["state_dict"]["network.1.weight"] = torch.zeros(3, 3)
    torch.save(other, best)
    assert main(["test", "here"]) == 2
    assert "does not fit the network of here/recipe.yaml" in capsys.readouterr().err
    metrics = json.loads(Path("here/metrics.json").read_text())
    Path("here/metrics.json").write_text(json.dumps({**metrics, "finished": False}))
    last.write_bytes(whole[: len(whole) // 2])
    assert main(["train", "--resume", "here"]) == 2
    assert "cannot read here/checkpoints/last.ckpt" in capsys.readouterr().err


def test_the_neuron_of_the_documentation_stands_in_a_recipe(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "add_a_neuron.md"
    code = next(block for block in page.read_text().split("```python\n") if "class Quadratic" in block)
    Path("my_neurons.py").write_text(code.partition("```")[0])
    monkeypatch.syspath_prepend(Path.cwd())
    changed = yaml.safe_load(Path(recipe).read_text())
    given = {"n": 32, "tau": 12.0, "threshold": 0.3, "learn": ["tau"], "engine": "reference"}
    changed["model"]["init_args"]["network"][2] = {"class_path": "my_neurons.Quadratic", "init_args": given}
    Path("mine.yaml").write_text(yaml.safe_dump(changed))
    assert main(["train", "mine.yaml", "--trainer.max_epochs", "1", "--run", "here", "--json"]) == 0
    assert result(capsys)["best"]["val/accuracy"] > 0.3
    assert main(["train", "mine.yaml", "--model.network.2.tau", "long"]) == 2
    assert 'my_neurons.Quadratic does not fit: Parser key "tau"' in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_is_a_line_too(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Digits, part: Any) -> Any:
        raise AttributeError("no attribute x")

    monkeypatch.setattr(Digits, "read", fail)
    with pytest.raises(AttributeError):  # and its traceback, which says where
        main(["train", recipe, "--json"])
    assert result(capsys) == {"verb": "train", "error": "no attribute x", "kind": "AttributeError"}


def test_a_failed_start_hides_no_run(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", recipe, "--trainer.max_epochs", "1", "--json"]
    assert main([*words, "--run", "runs/tiny/good"]) == 0
    assert main([*words, "--run", "runs/tiny/failed", "--best.metric", "val/none"]) == 2
    assert Path("runs/tiny/failed/recipe.yaml").is_file()
    capsys.readouterr()
    assert main(["test", "tiny", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["run"] == "runs/tiny/good"
    assert "runs/tiny/failed was begun later but has no checkpoint" in said.err
    Path("runs/tiny/good").rename("elsewhere")
    assert main(["test", "tiny"]) == 2
    assert "runs/tiny/failed has no best checkpoint yet" in capsys.readouterr().err


def test_a_run_without_validation_says_so(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--run", "here"]
    assert main(["train", recipe, *words]) == 0
    assert main(["test", "here"]) == 2
    assert "is finished but has no best checkpoint: it was never validated" in capsys.readouterr().err


def test_what_was_overridden_is_said_beside_the_judgement(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {"paper": "A 2020", "where": "Table 1", "metric": "test_accuracy", "value": 0.1, "tolerance": 0.0}
    Path("claims.yaml").write_text(yaml.safe_dump({**TINY, "claim": claim}))
    words = ["--trainer.max_epochs", "1", "--model.network.2.init_args.threshold=0.25", "--seed", "5"]
    words += ["--model.lr", "0.03", "--data.num_workers", "0"]  # as the recipe has it, and where it runs
    told = ["trainer.max_epochs=1", "model.network.2.threshold=0.25"]
    assert main(["reproduce", "claims.yaml", "--seeds", "1", *words, "--run", "some", "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1])["overridden"] == told
    sentence = f"Overridden: {', '.join(told)}; the claim is one of the recipe without that."
    assert sentence in said[-2] and sentence in json.loads(said[-1])["verdict_in_words"]
    assert json.loads(said[-1])["verdict"] == "above"

    run = Path("some/seed-5")
    assert json.loads((run / "versions.json").read_text())["overridden"] == told
    assert json.loads((run / "test.json").read_text())["overridden"] == told
    assert main(["test", str(run), "--json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["overridden", *", ".join(told).split()] for line in said)
    assert json.loads(said[-1])["overridden"] == told
    assert f"Overridden: {', '.join(told)}" in (run / "report.html").read_text()

    assert main(["train", "claims.yaml", "--seed", "1", "--run", "plain"]) == 0
    assert main(["test", "plain", "--json"]) == 0
    assert "\noverridden" not in (out := capsys.readouterr().out) and '"overridden"' not in out
    assert "Overridden:" not in Path("plain/report.html").read_text()


@pytest.mark.parametrize("when", ["import", "build", "data"])
def test_ctrl_c_in_start_up_says_so_and_leaves_nothing(
    when: str, recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import spiketide.training.recipe as module

    def press(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # until the signal is there

    target = {"import": (module.Recipe, "load"), "build": (Digits, "__init__"), "data": (Digits, "setup")}
    monkeypatch.setattr(*target[when], press)
    assert main(["train", recipe, "--run", "here", "--json"]) == 130
    said = capsys.readouterr()
    assert "spiketide train: stopped in start-up, before the first epoch: nothing was trained" in said.err
    assert json.loads(said.out) == {"verb": "train", "stopped": True, "run": None}
    assert sorted(os.listdir()) == ["tiny.yaml"]


def test_ctrl_c_while_testing_says_so(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", recipe, "--trainer.max_epochs", "1", "--run", "here"]) == 0

    def press(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(Digits, "test_dataloader", press)
        assert main(["test", "here"]) == 130
    assert "stopped while measuring here: no result was written" in capsys.readouterr().err
    assert not Path("here/test.json").exists()
    assert main(["test", "here"]) == 0


def test_usage_errors_are_json_too(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, verb, message in (
        (["trian", "--json"], None, "invalid choice: 'trian'"),
        (["--json"], None, "the following arguments are required: VERB"),
        (["--json", "test"], "test", "the following arguments are required: RUN"),
        (["reproduce", recipe, "--seeds", "many", "--json"], "reproduce", "invalid int value: 'many'"),
        (["train", recipe, "--run", "--json"], "train", "--run: expected one argument"),
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        last = json.loads(said.out)
        assert last["kind"] == "UsageError" and last["verb"] == verb, words
        assert message in last["error"] and message in said.err, words
        assert "usage: spiketide" in said.err and "Traceback" not in said.err
        assert main([word for word in words if word != "--json"]) == 2
        assert capsys.readouterr().out == ""
    code = "import sys; from spiketide.cli import main; sys.exit(main(['trian']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 2


def test_json_may_stand_before_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "list"]) == 0
    assert result(capsys)["verb"] == "list"


def test_the_recipe_may_stand_after_its_arguments(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.max_epochs", "1", "--seed", "7", recipe, "--model.lr=0.02"]
    assert main(["train", *words, "--run", "here", "--json"]) == 0
    assert result(capsys)["epochs"] == 1
    written = yaml.safe_load(Path("here/recipe.yaml").read_text())
    assert written["seed"] == 7 and written["model"]["init_args"]["lr"] == 0.02
    assert (
        main(["demo", "--trainer.max_epochs", "many", "--json"]) == 2
    )  # the demo's own recipe, not one called 'many'
    assert "max_epochs" in result(capsys)["error"]
    assert main(["train", recipe, "--model.lr", "--json"]) == 2
    assert "--model.lr needs a value" in result(capsys)["error"]


def test_a_further_process_prints_no_result(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spiketide.training.run.main_process", lambda: False)
    assert main(["test", "nowhere", "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "neither a run folder" in said.err


def compiled(cache: Path) -> dict[str, int]:
    """Every kernel on disk, printed or compiled, with the time of its last change."""
    package = Path(spiketide.__file__).parent
    files = [
        path
        for path in (cache / "spiketide" / "kernels").rglob("*")
        if path.suffix in (".py", ".nbi", ".nbc")
    ]
    files += [path for path in package.rglob("*.nb?") if path.suffix in (".nbi", ".nbc")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_second_demo_compiles_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    words = ["demo", "--trainer.max_epochs", "1", "--data.limit", "320"]
    seen = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "spiketide.cli", *words, "--run", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        seen.append(compiled(tmp_path / "cache"))
    printed = [path for path in seen[0] if path.startswith(str(tmp_path)) and path.endswith(".nbc")]
    assert printed  # the folder looked at is the one that the kernels went to
    assert seen[1] == seen[0]


def test_debug_shows_where(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/latency_lfi", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_untested_run_has_no_report(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--trainer.max_epochs", "1", "--run", "here"]) == 0
    assert main(["report", "here"]) == 2
    assert "was not tested yet" in capsys.readouterr().err
