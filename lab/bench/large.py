"""100,000,000 samples: how long summary and figures take, and in how much memory; and opening a run of 24 trials.

The run is made from random numbers, one trial at a time, and taken away afterwards. Prints what was measured.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

import hwrx
from hwrx.report import figures
from hwrx.runs import experiment, planning, store


def make(root: pathlib.Path, samples: int, trials: int) -> pathlib.Path:
    asked = experiment.from_options(
        name="large", paths=["udp", "tcp"], sizes=[64, 1024, 4096, 65536], repeats=trials // 8, seed=1
    )
    plan = planning.plan_run(asked, lambda setting: None)
    draw = np.random.default_rng(1)
    each = samples // trials
    with store.Writer.create(root, plan, {"emulated": False, "command": sys.argv}) as writer:
        for trial in plan.trials:
            typical = (20_000 if trial.setting.path == "udp" else 25_000) * (1 + trial.setting.size / 50_000)
            ns = draw.lognormal(np.log(typical), 0.2, each).astype(np.int64)
            writer.add_trial(
                trial, status="ok", tally={"delivered": each}, sequence=np.arange(each, dtype=np.uint32), ns=ns
            )
    return writer.path


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--trials", type=int, default=24, help="a multiple of 8")
    parser.add_argument("--run", type=pathlib.Path, help="an earlier run, instead of making one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        path = arguments.run or make(pathlib.Path(directory), arguments.samples, arguments.trials)
        size = (path / "samples.parquet").stat().st_size
        print(f"made in {time.monotonic() - start:.1f} s, {size / 1e6:.0f} MB, peak {peak():.0f} MB", flush=True)
        start = time.monotonic()
        run = hwrx.load(path)
        print(f"opened {len(run.rows)} trials in {time.monotonic() - start:.2f} s", flush=True)
        start = time.monotonic()
        summary = run.summary()
        print(f"summary in {time.monotonic() - start:.1f} s, peak {peak():.0f} MB", flush=True)
        start = time.monotonic()
        for name in figures.figure_names(summary):
            for kind in ("pdf", "svg"):
                figures.render_figure(figures.draw_figure(summary, name), kind)
        print(f"figures in {time.monotonic() - start:.1f} s, peak {peak():.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
