"""Real material for the report: handwritten digits through a small fixed spiking network in numpy."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from spiketide.report import ReportData, Row, SampleTrace, choose_samples

STEPS = 20
HIDDEN = 128


def _latency(images):
    """One spike per bright pixel, the brighter the earlier."""
    spikes = np.zeros((STEPS, *images.shape))
    when = np.round((1 - images) * (STEPS - 4)).astype(int)
    sample, pixel = np.nonzero(images > 0.1)
    spikes[when[sample, pixel], sample, pixel] = 1
    return spikes


def _lif(current):
    v = np.zeros(current.shape[1:])
    spikes, membrane = np.zeros_like(current), np.zeros_like(current)
    for step, drive in enumerate(current):
        v = 0.9 * v + drive
        membrane[step] = v
        spikes[step] = v >= 1.0
        v = v - spikes[step]
    return spikes, membrane


@pytest.fixture(scope="session")
def digits_run():
    """A report of a run on digits: latency code, fixed random LIF layer, least-squares read-out."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    images, labels = digits.data[:900] / 16, digits.target[:900]
    train, test = slice(0, 780), slice(780, 900)
    inputs = _latency(images)
    hidden, membrane = _lif(inputs @ rng.normal(0.04, 0.3, (64, HIDDEN)))
    counts = hidden.cumsum(0)
    features = np.concatenate([counts, np.ones((STEPS, 900, 1))], axis=2)
    goal = np.eye(10)[labels]
    gram = features[-1, train].T @ features[-1, train] + 5 * np.eye(HIDDEN + 1)
    weights = np.linalg.solve(gram, features[-1, train].T @ goal[train])
    scores = features @ weights
    predictions = scores[-1].argmax(1)
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (labels[test], predictions[test]), 1)
    samples = []
    for index in choose_samples(labels[test], predictions[test], 4, wrong=1):
        at = 780 + index
        busiest = np.argsort(-hidden[:, at].sum(0))[:3].tolist()
        samples.append(
            SampleTrace(
                label=labels[at],
                prediction=predictions[at],
                input=inputs[:, at],
                hidden={"lif": hidden[:, at]},
                membrane={"lif": membrane[:, at][:, busiest]},
                threshold={"lif": 1.0},
                neurons={"lif": busiest},
                scores=scores[:, at],
            )
        )
    return ReportData(
        title="Digits, latency coded",
        recipe="digits/latency_lif",
        summary=[
            Row("Test accuracy", float(np.trace(confusion) / confusion.sum()), "120 samples"),
            Row("Synaptic operations per sample", 61440, "dense: 1,000,000"),
            Row("Energy", None, "no energy model was chosen"),
        ],
        curves={
            "loss": [(e, 2.0 / (1 + e), 2.2 / (1 + e)) for e in range(8)],
            "accuracy": [
                (e, 0.5 + 0.05 * e, [0.4, 0.6, 0.7, 0.8, 0.8, 0.79, 0.8, 0.78][e]) for e in range(8)
            ],
            "firing_rate": [(e, 0.1, 0.1 + 0.01 * e) for e in range(8)],
        },
        confusion=confusion,
        class_names=[str(name) for name in digits.target_names],
        samples=samples,
        firing={"lif": hidden[:, test].mean((0, 1))},
        claim={"paper": "Somebody et al. 2020, Table 2", "value": 96.0, "tolerance": 1.0, "verdict": True},
        environment={
            "versions": {"torch": "2.9.0", "numpy": "2.1.0"},
            "seed": 3,
            "machine": "two cores",
            "commit": "0123abc",
            "command": "spiketide train digits/latency_lif --seed 3",
        },
        diagnosis=["lif: healthy."],
    )
