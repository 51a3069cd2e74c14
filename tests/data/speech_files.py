"""Small Speech Commands in the official layout, written here independently of the reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_files import write_wav

V1 = [
    "bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house", "left", "marvin",
    "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree", "two",
    "up", "wow", "yes", "zero",
]  # fmt: skip
V2 = sorted([*V1, "backward", "follow", "forward", "learn", "visual"])
NOISE_SAMPLES = 170_000
TRAIN, VALID, TEST = 3, 1, 1
"""Clips of a word."""


def clip(word: int, number: int, samples: int = 16000) -> np.ndarray:
    """A tone of the word's pitch, at its own time."""
    rng = np.random.RandomState(1000 * word + number)
    time = np.arange(samples)
    envelope = np.exp(-(((time - rng.randint(5000, 11000)) / 2000.0) ** 2))
    return 8000 * envelope * np.sin(2 * np.pi * (200 + 90 * word) / 16000 * time) + rng.normal(
        scale=20, size=samples
    )


def write_speech_commands(root: Path, version: int = 1, noise: int = 2) -> Path:
    """``speech_commands_v0.0N`` under ``root``: five clips a word, some shorter than a second, and recordings of noise."""
    folder = root / f"speech_commands_v0.0{version}"
    lists: dict[str, list[str]] = {"validation": [], "testing": []}
    for number, word in enumerate(V1 if version == 1 else V2):
        (folder / word).mkdir(parents=True)
        for k in range(TRAIN + VALID + TEST):
            name = f"{number:04x}{k:04x}_nohash_{k % 2}.wav"
            write_wav(folder / word / name, clip(number, k, 12001 if k == 1 else 16000), rate=16000)
            if k >= TRAIN:
                lists["validation" if k < TRAIN + VALID else "testing"].append(f"{word}/{name}")
    for part, names in lists.items():
        (folder / f"{part}_list.txt").write_text("\n".join(reversed(names)) + "\n")
    if noise:
        (folder / "_background_noise_").mkdir()
        (folder / "_background_noise_" / "README.md").write_text("noise")
    for n in range(noise):
        # Every sample tells where it is: upwards in the first recording, downwards in the second.
        place = np.arange(NOISE_SAMPLES) // 10 + 1
        write_wav(folder / "_background_noise_" / f"hum{n}.wav", place if n == 0 else -place, rate=16000)
    return folder
