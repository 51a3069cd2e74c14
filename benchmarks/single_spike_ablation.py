"""What each part of a single-spike network brings: one change at a time, on validation data alone.

::

    python benchmarks/single_spike_ablation.py fashion_mnist --epochs 6 --to runs/ablation

trains 20C5-P2-40C5-P2-300-10 once for each row below and prints a table. Rows that are there already are not trained again, so an
interrupted table goes on where it was. The test data is not touched.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spiketide import recipes
from spiketide.errors import SpiketideError
from spiketide.training import Recipe, train
from spiketide.training.folder import RunFolder

T = 64.0
SIZES = (1, 20, 40, 300, 10)
"""Channels and neurons; 4 x 4 places are left of each of the 40 channels."""

Content = dict[str, Any]


def layers(content: Content) -> list[Content]:
    """The firing layers of a recipe."""
    network = content["model"]["init_args"]["network"]
    return [module for module in network if "Timing" in module["class_path"]]


def base(data: str) -> Content:
    """The convolutional recipe, smaller and with nothing added: fixed slope, the pure rule."""
    content = recipes.read(recipes.find(f"{data}/mirsadeghi2021_stidi_conv")[1])
    arguments = content["data"]["init_args"]
    for name in ("shift", "rotation", "zoom", "flip", "erase"):
        arguments.pop(name, None)
    model = content["model"]["init_args"]
    model["network"] = [
        module for module in model["network"] if module["class_path"] != "spiketide.timing.Silence"
    ]
    for layer, (n_in, n_out) in zip(layers(content), itertools.pairwise(SIZES), strict=True):
        layer["init_args"].update(n_in=640 if n_in == 40 else n_in, n_out=n_out, mean=0.0)
    model["moments"] = [0.2, 0.2, 0.2, 0.7]
    content["claim"], content["threads"] = None, 1
    return content


def rule(**changes: Any) -> Callable[[Content], None]:
    """Another learning rule in every layer."""

    def change(content: Content) -> None:
        for layer in layers(content):
            layer["init_args"]["rule"]["init_args"].update(changes)

    return change


def free(span: float) -> Callable[[Content], None]:
    """Straight lines that never end, from the first step on, and the displacement rule with the chord."""

    def change(content: Content) -> None:
        model = content["model"]["init_args"]
        model["encoder"]["init_args"] = {"steps": int(T), "span": span, "threshold": 0.0392}
        for layer in layers(content):
            layer["init_args"].pop("psp")
            layer["init_args"].pop("mean")
            layer["init_args"]["stop"] = T
        rule(slope="chord")(content)
        model["loss"]["init_args"].update(tau=4.0, anchor=0.1, anchor_at=0.95)
        model["moments"] = [0.35, 0.5, 0.65, 0.8]
        content["data"]["init_args"]["batch_size"] = 32

    return change


def spike_prop(content: Content) -> None:
    """The exact chain rule through free slopes."""
    for layer in layers(content):
        layer["init_args"]["rule"] = {"class_path": "spiketide.timing.SpikeProp"}


def average(content: Content) -> None:
    """Mean times in place of the earliest."""
    stops = iter((2 * T, 3 * T))
    for module in content["model"]["init_args"]["network"]:
        if module["class_path"].endswith("EarliestPool2d"):
            module["class_path"] = "spiketide.timing.AveragePool2d"
            module["init_args"] = {"stop": next(stops)}


def silence(content: Content) -> None:
    """Dropout in front of the output."""
    content["model"]["init_args"]["network"].insert(
        -1, {"class_path": "spiketide.timing.Silence", "init_args": {"p": 0.2, "end": 4 * T}}
    )


def data(**changes: Any) -> Callable[[Content], None]:
    """Augmentation."""
    return lambda content: content["data"]["init_args"].update(changes)


def model(**changes: Any) -> Callable[[Content], None]:
    """Other arguments of the task."""
    return lambda content: content["model"]["init_args"].update(changes)


def binary(content: Content) -> None:
    """Signs of the weights in every layer."""
    for layer in layers(content):
        layer["init_args"]["binary"] = True


def positive(content: Content) -> None:
    """Initial weights whose mean is 1 / sqrt(0.3 n)."""
    for layer in layers(content):
        layer["init_args"].pop("mean")


def exact(content: Content) -> None:
    """Times between the steps."""
    content["model"]["init_args"]["encoder"]["init_args"]["exact"] = True
    for layer in layers(content):
        layer["init_args"]["exact"] = True


ROWS: dict[str, list[Callable[[Content], None]]] = {
    "free slope, pure rule (chord)": [free(0.25)],
    "free slope, displacements normalised": [free(0.25), rule(normalise=True)],
    "free slope, exact chain rule": [free(0.25), spike_prop],
    "fixed slope, pure rule": [],
    "  displacements normalised": [rule(normalise=True)],
    "  slope chord": [rule(slope="chord")],
    "  transfer of signs": [rule(transfer="sign")],
    "  average pooling": [average],
    "  initial weights of positive mean": [positive],
    "  later first spikes": [model(moments=[0.5, 0.5, 0.5, 0.8])],
    "  scales not calibrated": [model(moments=None)],
    "  exact times": [exact],
    "  shifts by a pixel": [data(shift=1)],
    "  mirrored": [data(flip=0.5)],
    "  silenced neurons, 0.2": [silence],
    "  binary weights": [binary],
}


def main() -> None:
    """Train the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=("mnist", "fashion_mnist"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--images", type=int, default=20_000, help="training images an epoch, drawn anew in each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", help="beginnings of the rows that are wanted")
    parser.add_argument("--to", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for number, (name, changes) in enumerate(ROWS.items()):
        if options.rows and not any(name.strip().startswith(row) for row in options.rows):
            continue
        content = copy.deepcopy(base(options.data))
        for change in changes:
            change(content)
        content["seed"] = options.seed
        content["trainer"]["max_epochs"] = options.epochs
        content["trainer"]["limit_train_batches"] = (
            options.images // content["data"]["init_args"]["batch_size"]
        )
        path = (
            options.to / f"{options.data}-{options.images}-{options.epochs}-{options.seed}" / f"{number:02d}"
        )
        folder = RunFolder(path)
        try:
            train(Recipe(content, name=name.strip()), folder, resume=(path / "recipe.yaml").is_file())
        except SpiketideError as problem:  # a row that breaks down is a result too
            broken[name] = str(problem)
            continue
        history = json.loads((path / "metrics.json").read_text())
        found[name] = history
    print(
        f"\n{options.data}, {options.epochs} epochs of {options.images} images, seed {options.seed}: last epoch"
    )
    print(f"{'':34}   train     val no fire  time spikes minutes")
    for name, history in found.items():
        last = history["history"][-1]
        figures = [f"{last[key]:8.2%}" for key in ("train/accuracy", "val/accuracy", "val/no_fire")]
        figures += [
            f"{last['val/time']:6.0f}",
            f"{last['val/spikes']:7.0f}",
            f"{history['seconds'] / 60:8.1f}",
        ]
        print(f"{name:34}" + "".join(figures))
    for name, problem in broken.items():
        print(f"{name:34}  broke down: {problem}")


if __name__ == "__main__":
    main()
