"""What the README and the playbooks say can be done."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_twenty_lines_of_the_readme_train_a_network(monkeypatch, tmp_path):
    import lightning as L

    monkeypatch.chdir(tmp_path)
    code = blocks("README.md")[0]
    assert "max_epochs=10" in code
    space: dict = {}
    with warnings.catch_warnings():
        # Lightning's own remarks on workers and on torch's pytree
        warnings.simplefilter("ignore")
        exec(code.replace("max_epochs=10", "max_epochs=4, enable_progress_bar=False"), space)
    assert isinstance(space["trainer"], L.Trainer)
    assert float(space["trainer"].callback_metrics["val/accuracy"]) > 0.85


def test_data_of_your_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    imports = "\n".join(
        line for line in blocks("README.md")[0].splitlines() if line.startswith(("import", "from"))
    )
    code = blocks("README.md")[2]
    assert "max_epochs=2" in code
    space: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(imports + "\n" + code.replace("max_epochs=2", "max_epochs=2, enable_progress_bar=False"), space)
    assert space["scores"].shape == (20, 4) and bool(torch.isfinite(space["scores"]).all())


@pytest.mark.parametrize(
    "path, number", [("README.md", 1), ("docs/how-to/add_a_neuron.md", 0), ("docs/how-to/add_a_neuron.md", 1)]
)
def test_neurons_of_the_documentation_run(path, number):
    space: dict = {}
    exec(blocks(path)[number], space)
    assert 0.01 < float(space["y"].detach().mean()) < 0.9


def test_a_neuron_that_rests_elsewhere_runs_by_both_engines():
    space: dict = {}
    for block in blocks("docs/how-to/add_a_neuron.md")[:3]:
        exec(block, space)  # it compares the engines itself
    neuron, x = space["Izhikevich"](3), space["x"]
    y, state = neuron(x)
    assert 0 < y.sum() < y.numel() and -90 < float(state[0].mean()) < -40
    half, middle = neuron(x[:25])
    rest, _ = neuron(x[25:], middle)
    assert torch.equal(torch.cat([half, rest]), y)


def test_files_that_the_readme_names_exist():
    for path in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / path).read_text()):
            if "://" not in link:
                assert (ROOT / link).exists(), f"{path} names {link}"


def test_demo_ends_with_a_json_line():
    assert "spiketide demo --json" in (ROOT / "Makefile").read_text()
