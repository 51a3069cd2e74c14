"""The command line: every verb, every refusal, and what stands last on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

    assert main(["test", "tiny", "--json"]) == 0  # a recipe's name means its latest run
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
