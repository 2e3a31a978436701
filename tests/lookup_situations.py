"""The random situations of lab/bench/lookup, for tests: made, predicted and sent on whatever kernel runs them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1] / "lab/bench"


def load_bench() -> Any:
    """Return lab/bench/lookup.py as a module, with its neighbour."""
    for name in ("situations", "lookup"):
        alias = name if name == "situations" else "bench_lookup"
        if alias in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(alias, BENCH / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[alias] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[alias])
    return sys.modules["bench_lookup"]
