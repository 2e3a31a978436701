"""What does a wrong bit do? Flips single bits, each alone, anywhere in a run directory, and reads everything again.

    lab/bench/bitflips --flips 2000
    lab/bench/bitflips runs/latest --flips 500 --seed 3 --json

Each flip ends in one of these:
    harmless   everything that is read is what was written, and nothing is said
    named      what is read is what was written; what cannot be read is named (Run.damage)
    refused    StoreError
    SILENT     something that is read differs from what was written, or is missing and not named
    TRACEBACK  another exception
    ABORT      the process died

Without RUN it flips in three small runs that it makes of random numbers: one that ended, one that was killed and is
still in parts, one that was resumed and killed. Exit code 1 if anything was silent, a traceback or an abort.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BAD = ("SILENT", "TRACEBACK", "ABORT")
KINDS = ("harmless", "named", "refused", *BAD)
REPORT_EVERY = 25  # flips after which the figures of merit are made too
MADE_AGAIN = {"report.html", "figures", "tables", "summary.json", "summary.csv"}  # from the run, at any time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=pathlib.Path, metavar="RUN")
    parser.add_argument("--flips", type=int, default=2000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or in_a_child(lambda: [str(path) for path in made(pathlib.Path(scratch) / "made")])
        found = []
        for number, run in enumerate(map(pathlib.Path, runs)):
            share = options.flips // len(runs) + (number < options.flips % len(runs))
            found += flip(run.resolve(), pathlib.Path(scratch) / f"copy{number}", share, options.seed + number)
    show(found, as_json=options.json)
    return int(any(result in BAD for _, _, result, _ in found))


# --- flipping --------------------------------------------------------------------------------------------------------

Found = tuple[str, int, str, str]  # file, bit, what came of it, in words


def flip(run: pathlib.Path, copy: pathlib.Path, flips: int, seed: int) -> list[Found]:
    """Flip bits of a run's files, each file in proportion to its length; a child that dies is an abort.

    Hidden files are the store's while it writes, and nobody reads them.
    """
    shutil.copytree(run, copy, ignore=lambda folder, names: MADE_AGAIN & set(names))
    files = sorted(path for path in copy.rglob("*") if path.is_file() and not path.name.startswith("."))
    sizes = [path.stat().st_size for path in files]
    draw = random.Random(seed)
    waiting = []
    for path in draw.choices(files, weights=sizes, k=flips):
        waiting.append((path, draw.randrange(8 * path.stat().st_size)))
    found: list[Found] = []
    while len(found) < flips:
        begun = found + from_child(copy, waiting[len(found) :])
        if len(begun) < flips:
            path, bit = waiting[len(begun)]
            begun.append((str(path.relative_to(copy)), bit, "ABORT", "the process died"))
            restore(run, copy, path)
        found = begun
    return found


def restore(run: pathlib.Path, copy: pathlib.Path, path: pathlib.Path) -> None:
    shutil.copyfile(run / path.relative_to(copy), path)


def from_child(copy: pathlib.Path, waiting: list[tuple[pathlib.Path, int]]) -> list[Found]:
    """Try flips in a child until it has tried all, or died."""

    def try_flips() -> Iterator[list[Any]]:
        before = read(copy)
        for number, (path, bit) in enumerate(waiting):
            yield [str(path.relative_to(copy)), bit, *tried(copy, path, bit, before, report=number % REPORT_EVERY == 0)]

    return [tuple(found) for found in yielded_in_child(try_flips)]  # type: ignore[misc]


def yielded_in_child(work: Callable[[], Iterable[Any]]) -> list[Any]:
    """Do work in a forked child, and return what it yields, as JSON has it, until it has done all, or died."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            for each in work():
                print(json.dumps(each), file=out, flush=True)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        found = [json.loads(line) for line in lines]
    os.waitpid(child, 0)
    return found


def tried(copy: pathlib.Path, path: pathlib.Path, bit: int, before: dict[str, Any], *, report: bool) -> tuple[str, str]:
    """Flip one bit, read, and put it back."""
    from hwrx.errors import StoreError

    content = path.read_bytes()
    wrong = bytearray(content)
    wrong[bit // 8] ^= 1 << bit % 8
    path.write_bytes(wrong)
    try:
        return judged(before, read(copy, report=report))
    except StoreError as error:
        return "refused", str(error)
    except Exception:
        return "TRACEBACK", traceback.format_exc()
    finally:
        path.write_bytes(content)


def judged(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str]:
    """Hold what was read against what was written."""
    damage = after["damage"]
    for key, value in after.items():
        if (
            key != "damage"
            and before.get(key) != value
            and not (isinstance(value, dict) and is_named(value, before[key]))
        ):
            return "SILENT", f"{key} differs"
    if missing := before.keys() - after.keys():
        return ("named", damage[0]) if damage else ("SILENT", f"{sorted(missing)[0]} is missing")
    return ("named", damage[0]) if damage else ("harmless", "")


def is_named(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a trial's row is the one that was written, but for its samples' loss, which it tells."""
    told = ("status", "error", "samples")
    same = {key: value for key, value in row.items() if key not in told}
    return row.get("status") == "damaged" and same == {key: before[key] for key in before if key not in told}


def read(folder: pathlib.Path, *, report: bool = False) -> dict[str, Any]:
    """Read everything of a run, by what it is."""
    import msgspec

    import hwrx

    run = hwrx.load(folder)
    found: dict[str, Any] = {
        "damage": run.damage,
        "status": run.status,
        "manifest": json.dumps(run.manifest),
        "experiment": msgspec.json.encode(run.experiment).decode(),
    }
    for row in run.rows:
        found[f"row {row['trial']}"] = {key: value for key, value in row.items() if value is not None}
    for row, samples in run.each_trial():
        arrays = (samples.sequence, samples.ns, samples.service_ns, samples.late)
        content = b"".join(b"-" if array is None else array.tobytes() for array in arrays)
        found[f"samples {row['trial']}"] = hashlib.sha256(content).hexdigest()
    for name in ("stages", "copies", "tracing", "arrivals", "timeline"):
        table = run.table(name)
        rows: dict[Any, list[Any]] = collections.defaultdict(list)
        for line in table.to_pylist() if table is not None else []:
            rows[line.get("trial")].append(line)
        for trial, lines in rows.items():
            if trial is None:  # arrivals of several floods: a piece may be missing
                found |= {f"{name} {json.dumps(line)}": True for line in lines}
            else:
                found[f"{name} {trial}"] = json.dumps(lines)
    for file in folder.glob("*.json"):
        if file.name != "manifest.json":
            found[file.name] = json.dumps(run.document(file.name))
    if report and run.manifest.get("kind") != "flood":
        run.summary()
    return found


# --- runs to flip in -------------------------------------------------------------------------------------------------


def in_a_child(work: Any) -> Any:
    """Call `work` in a child: Arrow's threads must not be there when this process forks."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(writing, "w") as out:
            print(json.dumps(work()), file=out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


def made(root: pathlib.Path) -> list[pathlib.Path]:
    """Write three small runs out of random numbers."""
    from hwrx.runs import experiment, planning, store

    def plan(seed: int) -> planning.Plan:
        options: dict[str, Any] = {"sizes": [64, 1024], "patterns": ["pingpong", "stream"], "messages": 300}
        return planning.plan_run(
            experiment.from_options(name="made", paths=["udp", "tcp"], seed=seed, repeats=2, **options), lambda _: None
        )

    whole = plan(1)
    with store.Writer.create(root, whole, {"emulated": False, "machine": {"kernel": "6.1.0-made"}}) as writer:
        for trial in whole.trials:
            add(writer, trial)
        writer.add_document("more.json", {"a": [1, 2, 3], "b": {"c": 1.5, "d": "words"}})
    killed = plan(2)
    parts = store.Writer.create(root, killed, {"emulated": False})
    for trial in killed.trials[:12]:
        add(parts, trial)
    again = plan(3)
    with store.Writer.create(root, again, {"emulated": False}) as stopped:
        for trial in again.trials[:5]:
            add(stopped, trial)
    resumed, left = store.Writer.resume(stopped.path)
    for trial in left.trials[:5]:
        add(resumed, trial)
    return [writer.path, parts.path, resumed.path]


def add(writer: Any, trial: Any) -> None:
    import numpy as np
    import pyarrow as pa

    draw = np.random.default_rng(trial.number)
    count = trial.setting.messages
    writer.add_trial(
        trial,
        status="ok",
        tally={"posted": count, "delivered": count, "bytes": count * trial.setting.size, "lost": 0},
        sequence=np.arange(count, dtype=np.uint32),
        ns=draw.integers(10_000, 20_000, count),
        late=draw.random(count) < 0.01,
        extra={"cpu_ns": {"client": {"user": 1000}}, "chosen": {"client": {"mtu": 1024}}},
    )
    names = pa.array(["posted", "ip_rcv", "delivered"] * 20).dictionary_encode()
    numbers = pa.array(np.full(60, trial.number), pa.int32())
    writer.add_table("copies", pa.table({"trial": numbers, "stage": names, "bytes": draw.integers(0, 9, 60)}))


# --- telling ---------------------------------------------------------------------------------------------------------


def show(found: list[Found], *, as_json: bool) -> None:
    counts = collections.Counter(result for _, _, result, _ in found)
    by_file: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for file, _, result, _ in found:
        kind = "parts/" if file.startswith("parts/") else file
        by_file[kind][result] += 1
    bad = [entry for entry in found if entry[2] in BAD]
    if as_json:
        files = {file: dict(of) for file, of in sorted(by_file.items())}
        print(json.dumps({"flips": len(found), **{kind: counts[kind] for kind in KINDS}, "files": files, "bad": bad}))
        return
    print(f"{'':24}" + "".join(f"{kind:>11}" for kind in KINDS))
    for file, of in sorted(by_file.items()):
        print(f"{file:24}" + "".join(f"{of[kind] or '':>11}" for kind in KINDS))
    print(f"{len(found):<24}" + "".join(f"{counts[kind]:>11}" for kind in KINDS))
    for file, bit, result, words in bad[:10]:
        print(f"{result}: bit {bit} of {file}: {words}")


if __name__ == "__main__":
    sys.exit(main())
