"""JSON that every parser takes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hwrx.host.strict_json import to_json


def test_what_is_no_number_is_null() -> None:
    content = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": np.float64("nan"), "c": np.int64(3), "d": "NaN µs"}
    text = to_json({**content, "e": np.array([1.0, math.nan])})
    assert "NaN" not in text.replace("NaN µs", "")
    assert json.loads(text) == {"a": [None, 1.5, [None, None]], "b": None, "c": 3, "d": "NaN µs", "e": [1.0, None]}


def test_what_is_no_data_is_refused_or_made_some() -> None:
    with pytest.raises(TypeError):
        to_json({"a": object()})
    assert json.loads(to_json({"a": 1j}, default=str)) == {"a": "1j"}
