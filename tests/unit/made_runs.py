"""Makes runs out of random numbers, for tests of what reads runs. Nothing here was measured."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from hwrx import experiment, store
from hwrx.messages import Setting

MANIFEST: dict[str, Any] = {
    "emulated": True,
    "command": ["hwrx", "compare", "made-up.toml"],
    "machine": {"kernel": "6.1.0-test", "cpu": "made up for a test", "accelerator": "tcg"},
}
SPEED = {"udp": 200_000, "tcp": 230_000, "rdma-send": 400_000, "rdma-write": 380_000, "rdma-read": 500_000}


def times(setting: Setting, draw: np.random.Generator, block: float = 0.0) -> npt.NDArray[np.int64]:
    """Log-normal times around a path's speed, which grows with size; `block` shifts a whole repeat."""
    typical = SPEED[setting.path] * (1 + setting.size / 20_000) * np.exp(block)
    spread = typical * np.exp(draw.normal(0, 0.08, setting.messages))
    spread[draw.random(setting.messages) < 0.01] *= 4
    if setting.pattern == "stream":
        spread *= 0.3
        spread[0] = 0
    return spread.astype(np.int64)


def layout(**options: Any) -> experiment.Plan:
    fields: dict[str, Any] = {"paths": ["udp", "rdma-send"], "sizes": [64, 1024], "seed": 1, "messages": 1200}
    fields.update(options)
    return experiment.plan(experiment.from_options(**{"name": "made", **fields}), lambda setting: None)


def add(writer: store.Writer, trial: experiment.Trial, seed: int = 0, spread: float = 0.02) -> None:
    draw = np.random.default_rng([seed, trial.number])
    block = float(np.random.default_rng([seed, 1000 + trial.repeat]).normal(0, spread))
    ns = times(trial.setting, draw, block)
    service = (ns // 2) if trial.setting.pattern == "paced" else None
    count = len(ns)
    writer.add_trial(
        trial,
        status="ok",
        tally={"posted": count, "delivered": count, "bytes": count * trial.setting.size, "lost": 0, "corrupt": 0},
        sequence=np.arange(count, dtype=np.uint32),
        ns=ns,
        service_ns=service,
        extra={
            "cpu_ns": {"client": {"user": 1000, "system": 5000}, "server": {"user": 1000, "system": 4000}},
            "resident": {"client": 30 << 20, "server": 31 << 20},
            "chosen": {"client": {"mtu": 1024}, "server": {}},
        },
    )


def make(root: pathlib.Path, seed: int = 0, manifest: dict[str, Any] | None = None, **options: Any) -> pathlib.Path:
    """Write a whole made-up run and return its directory."""
    plan = layout(**options)
    with store.Writer.create(root, plan, MANIFEST if manifest is None else manifest) as writer:
        for trial in plan.trials:
            add(writer, trial, seed)
    return writer.path
