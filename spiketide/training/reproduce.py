"""The same recipe over several seeds, and what that says about its claim."""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError, unknown
from .folder import RunFolder
from .judgement import judge
from .recipe import Claim, Recipe
from .run import main_process, test, train

log = logging.getLogger("spiketide")


def reproduce(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    seeds: int = 3,
    runs: Path = Path("runs"),
    folder: str | Path | None = None,
) -> dict[str, Any]:
    """Train and test a recipe with ``seeds`` seeds, counted up from its own.

    Each seed has its folder ``<folder>/seed-<n>``. A seed that was tested is not repeated and one that was cut short is
    resumed, so the same command goes on after a kill and a larger number of seeds adds to the smaller one.

    Args:
        recipe: name or path.
        overrides: arguments of the recipe, as on the command line.
        seeds: how many.
        runs: where runs are kept.
        folder: where the seeds are kept; by default ``runs/<recipe>/reproduce``.

    Returns:
        ``mean``, ``sd``, the 95 % ``interval`` of the mean (Student's t), ``claim``, ``verdict``, what was ``overridden`` of the
        recipe, and the ``runs``.

    Raises:
        RunError: a seed's folder holds a run of another recipe.
        RecipeError: the claim names a metric that ``test`` does not measure.
    """
    base = Recipe.load(recipe, overrides)
    first = base.settings["seed"]
    root = Path(folder) if folder is not None else Path(runs) / base.name / "reproduce"
    rows = []
    for seed in range(first, first + seeds):
        one = Recipe.load(recipe, [*overrides, "--seed", str(seed)])
        place = RunFolder(root / f"seed-{seed}", writer=main_process())
        if place.read_json("test.json") is None or Recipe.load(place.path / "recipe.yaml").yaml != one.yaml:
            log.info("seed %d", seed)
            trained = train(one, place, resume=(place.path / "recipe.yaml").is_file())
            if not main_process():
                sys.exit(0)  # a second process belongs to one training; the next one starts its own
            seconds = trained["seconds"]
        else:
            seconds = (place.read_json("metrics.json") or {}).get("seconds")
        rows.append({"seed": seed, "run": str(place.path), "seconds": seconds, **test(place)})
    return summarise(rows, base.claim, base.overridden)


def summarise(
    rows: Sequence[dict[str, Any]], claim: Claim | None, overridden: Sequence[str] = ()
) -> dict[str, Any]:
    """Mean, standard deviation, interval and verdict of tested runs; ``overridden`` is what the recipe says otherwise.

    Example:
        >>> from spiketide.training.recipe import Claim
        >>> from spiketide.training.reproduce import summarise
        >>> rows = [{"seed": s, "run": f"seed-{s}", "test_accuracy": a} for s, a in enumerate([0.95, 0.96, 0.97])]
        >>> result = summarise(rows, Claim("Someone 2020", "Table 1", "test_accuracy", 0.965, 0.01))
        >>> round(result["mean"], 4), [round(end, 4) for end in result["interval"]], result["verdict"]
        (0.96, [0.9352, 0.9848], 'reproduced')
    """
    metric = claim.metric if claim is not None else "test_accuracy"
    if metric not in rows[0]:
        numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
        raise RecipeError("claim: " + unknown("metric", metric, numbers))
    values = [float(row[metric]) for row in rows]
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    interval = None
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
        interval = [mean - half, mean + half]
        if "accuracy" in metric:  # a share: nothing lies beyond none and all
            interval = [max(0.0, interval[0]), min(1.0, interval[1])]
    verdict, words = judge(mean, interval, claim, overridden)
    return {
        "metric": metric,
        "seeds": len(values),
        "mean": mean,
        "sd": sd,
        "interval": interval,
        "claim": None if claim is None else vars(claim),
        "overridden": list(overridden),
        "verdict": verdict,
        "verdict_in_words": words,
        "runs": [{"value": value, **row} for value, row in zip(values, rows, strict=True)],
    }
