"""What is not a number in JSON."""

from __future__ import annotations

import json
import math

from spiketide.plain import plain, to_json


def test_what_is_not_finite_becomes_null() -> None:
    content = {
        "loss": math.nan,
        "nested": [{"up": math.inf, "down": -math.inf}, (1.5, None, True, "NaN")],
        "count": 3,
    }
    wanted = {"loss": None, "nested": [{"up": None, "down": None}, [1.5, None, True, "NaN"]], "count": 3}
    assert plain(content) == wanted

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(to_json(content), parse_constant=refuse) == wanted
    assert to_json({"a": [1]}, indent=2) == json.dumps({"a": [1]}, indent=2)
    assert math.isnan(content["loss"])  # type: ignore[arg-type] # the content itself is left alone
