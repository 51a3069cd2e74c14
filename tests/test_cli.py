"""The command line: every verb, every refusal, and what stands last on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    # 64 pixels fire at most once each; the hidden neurons as often as measured.
    hidden = tested["firing_rate"] * 6 * 32 * 10
    assert tested["synaptic_operations"] - hidden == pytest.approx(
        (tested["synaptic_operations"] - hidden) // 1, abs=1
    )
    assert 20 * 32 < tested["synaptic_operations"] - hidden < 64 * 32
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
    assert "digits/latency_lif" in out.splitlines()[0]


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


def test_debug_shows_where(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/latency_lfi", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_untested_run_has_no_report(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--trainer.max_epochs", "1", "--run", "here"]) == 0
    assert main(["report", "here"]) == 2
    assert "was not tested yet" in capsys.readouterr().err
