"""Whether a claim was met."""

from __future__ import annotations

from collections.abc import Sequence

from .recipe import Claim


def judge(
    mean: float, interval: Sequence[float] | None, claim: Claim | None, overridden: Sequence[str] = ()
) -> tuple[str, str]:
    """Whether a claim was met: ``reproduced``, ``above``, ``open`` or ``not reproduced``, and why in words.

    The mean decides; when it falls short but the 95 % interval still reaches the claim, the question stays open. What was
    ``overridden`` on the command line is said, since the claim is one of the recipe as it stands.
    """
    verdict, words = _judged(mean, interval, claim)
    if claim is not None and overridden:
        words += f" Overridden: {', '.join(overridden)}; the claim is one of the recipe without that."
    return verdict, words


def _judged(mean: float, interval: Sequence[float] | None, claim: Claim | None) -> tuple[str, str]:
    if claim is None:
        return "no claim", "the recipe is our own: there is no published number to compare with."
    low, high = claim.value - claim.tolerance, claim.value + claim.tolerance
    said = f"{claim.paper} ({claim.where}) {claim.metric} {claim.value:g}, tolerance {claim.tolerance:g}"
    if mean > high:
        return "above", f"above the claim: {mean:.4f} against {said}."
    if mean >= low:
        return "reproduced", f"reproduced: {mean:.4f} against {said}."
    if interval is not None and interval[1] >= low:
        return (
            "open",
            f"open: {mean:.4f} falls short of {said}, but its interval reaches it; take more seeds.",
        )
    return "not reproduced", f"not reproduced: {mean:.4f} against {said}."
