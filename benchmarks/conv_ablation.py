"""What each part of the convolutional network brings on spoken digits: one change at a time, on validation data alone.

::

    python benchmarks/conv_ablation.py --epochs 8 --to runs/conv_ablation

trains ``fsdd/zimmer2019_conv`` with fewer channels once for each row below and prints a table; a fifth of the official split's
training part validates. Rows that are there already are not trained again, so an interrupted table goes on where it was. The test
data is not touched.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spiketide import recipes
from spiketide.training import Recipe, train
from spiketide.training.folder import RunFolder

Content = dict[str, Any]
Change = Callable[[Content], None]
BANDS, REACH = 40, (3, 12, 48)


def layers(content: Content) -> list[Content]:
    """The three layers of a recipe."""
    network = content["model"]["init_args"]["network"]
    return [module for module in network if module["class_path"].startswith("spiketide.lateral.")][:3]


def base(channels: int) -> Content:
    """The recipe with so many channels."""
    content = recipes.read(recipes.find("fsdd/zimmer2019_conv")[1])
    content = json.loads(json.dumps(content))  # the neurons of a recipe are one object by an anchor
    content["data"]["init_args"]["validation_fraction"] = 0.2
    for k, layer in enumerate(layers(content)):
        synapse = layer["init_args"]["synapse"]["init_args"]
        synapse.update(c_in=channels if k else 3, c_out=channels)
        layer["init_args"]["neuron"]["init_args"]["n"] = [channels, BANDS]
    readout = content["model"]["init_args"]["network"][-1]["init_args"]["synapse"]["init_args"]
    readout["n_in"] = channels * BANDS
    return content


def synapse(**changes: Any) -> Change:
    """Other arguments of every convolution."""

    def change(content: Content) -> None:
        for layer in layers(content):
            layer["init_args"]["synapse"]["init_args"].update(changes)

    return change


def neuron(**changes: Any) -> Change:
    """Other arguments of every neuron."""

    def change(content: Content) -> None:
        for layer in layers(content):
            arguments = layer["init_args"]["neuron"]["init_args"]
            arguments.update(changes)
            if changes.get("leaky") is False:
                arguments.pop("decay", None)

    return change


def lateral(**changes: Any) -> Change:
    """Other lateral connections."""

    def change(content: Content) -> None:
        for layer in layers(content):
            layer["init_args"].update(changes)

    return change


def without(content: Content) -> None:
    """No lateral connections: a reset by the threshold."""
    for layer in layers(content):
        layer["class_path"] = "spiketide.lateral.Normalized"
        layer["init_args"]["neuron"]["init_args"]["reset"] = "soft"


def adaptive(content: Content) -> None:
    """Adaptive neurons, which no one has put here."""
    for layer in layers(content):
        layer["class_path"] = "spiketide.lateral.Normalized"
        n = layer["init_args"]["neuron"]["init_args"]["n"]
        layer["init_args"]["neuron"] = {
            "class_path": "spiketide.neurons.ALIF",
            "init_args": {
                "n": n,
                "dt": 10.0,
                "tau_mem": 28.0,
                "tau_adapt": 200.0,
                "threshold": 0.5,
                "learn": ["tau_mem", "tau_adapt", "threshold"],
                "surrogate": {"class_path": "spiketide.surrogate.Sigmoid", "init_args": {"slope": 4.0}},
            },
        }


def regulariser(name: str | None, **arguments: Any) -> Change:
    """Another penalty on spikes, or none."""

    def change(content: Content) -> None:
        found = [] if name is None else [{"class_path": f"spiketide.losses.{name}", "init_args": arguments}]
        content["model"]["init_args"]["regularisers"] = found

    return change


def delays(content: Content) -> None:
    """In place of kernels in time, a learnt delay for every channel and band, up to the reach of the kernel."""
    network: list[Content] = []
    number = 0
    for module in content["model"]["init_args"]["network"]:
        if module in layers(content):
            arguments = module["init_args"]["synapse"]["init_args"]
            c_in = arguments["c_in"]
            arguments.update(kernel_size=[1, 3], dilation=[1, arguments.get("dilation", [1, 1])[1]])
            network += [
                {"class_path": "torch.nn.Flatten"},
                {
                    "class_path": "spiketide.synapses.AxonalDelay",
                    "init_args": {"n": c_in * BANDS, "max_delay": REACH[number]},
                },
                {
                    "class_path": "torch.nn.Unflatten",
                    "init_args": {"dim": 1, "unflattened_size": [c_in, BANDS]},
                },
            ]
            number += 1
        network.append(module)
    model = content["model"]["init_args"]
    model["network"] = network
    model["lr_delays"] = 10.0
    model["delay_anneal"] = {"class_path": "spiketide.synapses.DelayAnneal", "init_args": {"share": 0.5}}


PUBLISHED = {"class_path": "spiketide.surrogate.Sigmoid", "init_args": {"slope": 10.0, "scaled": False}}
SCALE = 0.0225
"""Of a threshold that is not normalised: the squared norm of the first weights."""

ROWS: dict[str, list[Change]] = {
    "the recipe": [],
    "no lateral connections": [without],
    "free lateral matrix": [lateral(connections="free")],
    "threshold not normalised": [lateral(normalized=False), neuron(threshold=SCALE)],
    "decay fixed": [neuron(learn=["threshold"])],
    "no leak": [neuron(leaky=False, learn=["threshold"])],
    "time only": [synapse(kernel_size=[4, 1])],
    "frequency only": [synapse(kernel_size=[1, 3])],
    "not dilated": [synapse(dilation=[1, 1])],
    "causal": [synapse(padding="causal")],
    "surrogate as published": [neuron(surrogate=PUBLISHED)],
    "no penalty on spikes": [regulariser(None)],
    "activity loss 0.1": [regulariser("Activity", weight=0.1, by_depth=True)],
    "activity loss 1": [regulariser("Activity", weight=1.0, by_depth=True)],
    "delays in place of time kernels": [delays],
    "adaptive neurons, no lateral": [adaptive],
}


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against firing rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (name, history) in enumerate(found.items()):
        last = history["history"][-1]
        rate, accuracy = 100 * last["val/rate"], 100 * last["val/accuracy"]
        label = f"{name}: {accuracy:.1f} %, {rate:.1f} Hz"
        axes.plot(
            rate, accuracy, "osD^vP"[number % 6], color=f"C{number % 10}", ms=8, alpha=0.75, label=label
        )
    axes.set_xlabel("firing rate (Hz at steps of 10 ms)")
    axes.set_ylabel("validation accuracy (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Train the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="training clips an epoch")
    parser.add_argument("--rows", nargs="*", help="beginnings of the rows that are wanted")
    parser.add_argument("--to", type=Path, default=Path("runs/conv_ablation"))
    options = parser.parse_args()
    found = {}
    place = options.to / f"{options.channels}-{options.epochs}-{options.seed}"
    for number, (name, changes) in enumerate(ROWS.items()):
        if options.rows and not any(name.startswith(row) for row in options.rows):
            continue
        content = copy.deepcopy(base(options.channels))
        for change in changes:
            change(content)
        content["seed"] = options.seed
        content["trainer"]["max_epochs"] = options.epochs
        if options.limit:
            content["trainer"]["limit_train_batches"] = (
                options.limit // content["data"]["init_args"]["batch_size"]
            )
        path = place / f"{number:02d}"
        train(Recipe(content, name=name), RunFolder(path), resume=(path / "recipe.yaml").is_file())
        found[name] = json.loads((path / "metrics.json").read_text())
    print(f"\n{options.channels} channels, {options.epochs} epochs, seed {options.seed}: last epoch")
    print(f"{'':34}   train     val    Hz minutes")
    for name, history in found.items():
        last = history["history"][-1]
        figures = f"{last['train/accuracy']:8.2%}{last['val/accuracy']:8.2%}{100 * last['val/rate']:6.1f}"
        print(f"{name:34}{figures}{history['seconds'] / 60:8.1f}")
    if found:
        plot(found, place / "accuracy_against_rate.png")


if __name__ == "__main__":
    main()
