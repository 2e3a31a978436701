"""Makes runs out of random numbers, for tests of what reads runs. Nothing here was measured."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hwrx.control.messages import Setting
from hwrx.runs import experiment, planning, store
from hwrx.runs.trials import Trial
from hwrx.timelines import tables

MANIFEST: dict[str, Any] = {
    "emulated": True,
    "command": ["hwrx", "compare", "made-up.toml"],
    "machine": {"kernel": "6.1.0-test", "cpu": "made up for a test", "accelerator": "tcg"},
}
SPEED = {"udp": 200_000, "tcp": 230_000, "rdma-send": 400_000, "rdma-write": 380_000, "rdma-read": 500_000}
SPEED["rdma-write-imm"] = 390_000


def times(setting: Setting, draw: np.random.Generator, block: float = 0.0) -> npt.NDArray[np.int64]:
    """Log-normal times around a path's speed, which grows with size; `block` shifts a whole repeat."""
    typical = SPEED[setting.path] * (1 + setting.size / 20_000) * np.exp(block)
    spread = typical * np.exp(draw.normal(0, 0.08, setting.messages))
    spread[draw.random(setting.messages) < 0.01] *= 4
    if setting.pattern == "stream":
        spread *= 20  # long enough for a rate
        spread[0] = 0
    return spread.astype(np.int64)


def layout(**options: Any) -> planning.Plan:
    fields: dict[str, Any] = {"paths": ["udp", "rdma-send"], "sizes": [64, 1024], "seed": 1, "messages": 1200}
    fields.update(options)
    return planning.plan_run(experiment.from_options(**{"name": "made", **fields}), lambda setting: None)


def add(writer: store.Writer, trial: Trial, seed: int = 0, spread: float = 0.02) -> None:
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
            "cpu": {
                "thread": 11_000 * count,
                "worker": 1000 * count,
                "other": 500 * count,
                "idle": 2000 * count,
                "busy": 12_500 * count,
                "client": {"thread": 6000 * count},
            },
            "cpu_missing": {"softirq": "the kernel charges them to whoever they interrupt; --trace tells them apart"},
            "resident": {"client": 30 << 20, "server": 31 << 20},
            "chosen": {
                "client": {"mtu": 1024, **({"memory": "pinned, 4 KiB pages"} if "rdma" in trial.setting.path else {})},
                "server": {},
            },
        },
    )


def make(root: pathlib.Path, seed: int = 0, manifest: dict[str, Any] | None = None, **options: Any) -> pathlib.Path:
    """Write a whole made-up run and return its directory."""
    plan = layout(**options)
    with store.Writer.create(root, plan, MANIFEST if manifest is None else manifest) as writer:
        for trial in plan.trials:
            add(writer, trial, seed)
    return writer.path


# --- traced -------------------------------------------------------------------------------------------------------

STAMPED = ("posted", "sys_enter send", "udp_rcv", "udp_queue_rcv_one_skb", "copied to the user", "delivered")
Interval = Callable[[Setting, str, str], int]  # of a setting, a direction and a stage: ns since the stage before


def trace(writer: store.Writer, trial: Trial, interval: Interval, copies: Callable[[Setting], int]) -> None:
    """Write what a traced twin of a trial would bring: 20 messages each way, copied so many times by the receiver."""
    setting = trial.setting
    known = {"trial": trial.number, "path": setting.path, "size": setting.size, "pattern": setting.pattern}
    ways = ("there",) if setting.pattern == "stream" else ("there", "back")
    stamps = [
        {
            **known,
            "direction": way,
            "sequence": number,
            "name": name,
            "actor": "softirq",
            "ns": interval(setting, way, name) * bool(place),
        }
        for way in ways
        for number in range(20)
        for place, name in enumerate(STAMPED)
    ]
    writer.add_table("stages", _table(stamps, tables.STAGES))
    bytes_ = 20 * setting.size
    handled = [("sender", "ip_generic_getfrag", 1), ("receiver", "copied to the user", copies(setting))]
    copied = [
        {**known, "stage": stage, "side": side, "kind": "copied", "bytes": times * bytes_, "per_byte": float(times)}
        for side, stage, times in handled
    ]
    writer.add_table("copies", _table(copied, tables.COPIES))
    cost = {"p50_off_ns": 1000.0, "p50_on_ns": 2270.0, "delivered_bytes": bytes_}
    cost |= {"sender_copies": 1.0, "receiver_copies": float(copies(setting))}
    cost |= {"sender_passes": 0.0, "receiver_passes": 0.0}
    rows = [{**known, **cost, "direction": way, "messages": 20, "complete": 20, "missing": "{}"} for way in ways]
    writer.add_table("tracing", _table(rows, tables.TRACING))


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows, with nothing of note in the columns that they leave out."""

    def nothing(field: pa.Field) -> Any:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        return None if field.nullable else "" if pa.types.is_string(kind) else 0

    full = [{field.name: row.get(field.name, nothing(field)) for field in schema} for row in rows]
    return pa.Table.from_pylist(full, schema=schema)


def make_traced(
    root: pathlib.Path,
    interval: Interval,
    copies: Callable[[Setting], int] = lambda setting: 1,
    manifest: dict[str, Any] | None = None,
    **options: Any,
) -> pathlib.Path:
    """Write a whole made-up run of udp with its traced twins and return its directory."""
    plan = layout(**{"paths": ["udp"], "messages": 60, "warmup": 5, **options})
    with store.Writer.create(root, plan, MANIFEST if manifest is None else manifest) as writer:
        for trial in plan.trials:
            add(writer, trial)
            trace(writer, trial, interval, copies)
    return writer.path
