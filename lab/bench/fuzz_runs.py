"""Worse than a wrong bit: what do damaged, half-copied and forged run directories do to whoever reads them?

    lab/bench/fuzz_runs --variants 4000
    lab/bench/fuzz_runs --variants 200 --seed 3 --json

A variant is a small run of random numbers (see bitflips.py, which flips the bits) of which one or several files were
cut, lengthened, overwritten, exchanged, taken away, added, or became a folder or a link; or whose manifest or journal
holds values of other types under a right checksum. Each ends as in bitflips.py; a forged run may say whatever it likes,
so there only a traceback or an abort is bad. Exit code 1 if anything was silent, a traceback or an abort.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import bitflips

ODD: list[Any] = [
    None,
    -1,
    0,
    2**70,
    1e308,
    "",
    "x" * 5000,
    "\x1b[2J",
    "../../etc",
    True,
    [],
    [[[]]],
    {},
    {"a": {}},
    "nan",
]
Change = Callable[[random.Random, pathlib.Path], bool]


def some_file(draw: random.Random, run: pathlib.Path) -> pathlib.Path:
    return draw.choice(sorted(path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")))


# --- changes: each returns whether the run is forged, so that it may say something else ----------------------------


def cut(draw: random.Random, run: pathlib.Path) -> bool:
    file = some_file(draw, run)
    os.truncate(file, draw.randrange(file.stat().st_size + 1))
    return False


def lengthen(draw: random.Random, run: pathlib.Path) -> bool:
    with some_file(draw, run).open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 200)))
    return False


def overwrite(draw: random.Random, run: pathlib.Path) -> bool:
    file = some_file(draw, run)
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content) + 1)
    content[at : at + 100] = draw.randbytes(min(100, len(content) - at))
    file.write_bytes(content)
    return False


def exchange(draw: random.Random, run: pathlib.Path) -> bool:
    one, other = some_file(draw, run), some_file(draw, run)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return False


def take_away(draw: random.Random, run: pathlib.Path) -> bool:
    some_file(draw, run).unlink()
    return False


def make_folder(draw: random.Random, run: pathlib.Path) -> bool:
    file = some_file(draw, run)
    file.unlink()
    file.mkdir()
    return False


def make_link(draw: random.Random, run: pathlib.Path) -> bool:
    file = some_file(draw, run)
    file.unlink()
    file.symlink_to(draw.choice(("nowhere", file.name, "/dev/null", "/proc/self/mem")))
    return False


def add(draw: random.Random, run: pathlib.Path) -> bool:
    known = some_file(draw, run)
    (run / "parts").mkdir(exist_ok=True)
    name = draw.choice(("more.txt", "parts/samples-000099.parquet", "parts/x", f"parts/{known.name}", "copies.parquet"))
    if not (run / name).exists():
        (run / name).write_bytes(draw.choice((b"", draw.randbytes(300), known.read_bytes())))
    return True  # a part that a writer may have left is taken up, as it should be


def forge_manifest(draw: random.Random, run: pathlib.Path) -> bool:
    from hwrx.runs import seal

    file = run / "manifest.json"
    content = seal.opened_document(file.read_bytes(), file.name)
    if content is not None:
        file.write_bytes(seal.sealed_document(forged(draw, content), file.name))
    return True


def forge_journal(draw: random.Random, run: pathlib.Path) -> bool:
    from hwrx.runs import journal, seal

    manifest = json.loads((run / "manifest.json").read_bytes())
    file = run / journal.FILE
    if not file.exists():
        return forge_manifest(draw, run)
    key = f"{manifest['store']['id']}/{journal.FILE}"
    lines = [seal.opened_line(line, key) for line in file.read_bytes().splitlines()]
    file.write_bytes(b"".join(seal.sealed_line(forged(draw, line), key) + b"\n" for line in lines if line))
    return True


def forged(draw: random.Random, content: dict[str, Any]) -> dict[str, Any]:
    """Put odd values, in any depth, into a copy; take keys away."""
    copy: dict[str, Any] = json.loads(json.dumps(content))
    copy.pop("crc32", None)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at: Any = copy
        while True:
            key = draw.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
            inner = at[key]
            if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.4:
                break
            at = inner
        if isinstance(at, dict) and draw.random() < 0.2 and len(at) > 1:
            del at[key]
        else:
            at[key] = draw.choice(ODD)
    return copy


CHANGES: dict[str, Change] = {
    change.__name__.replace("_", "-"): change
    for change in (
        cut, lengthen, overwrite, exchange, take_away, make_folder, make_link, add, forge_manifest, forge_journal
    )
}  # fmt: skip


# --- trying ----------------------------------------------------------------------------------------------------------


def try_variant(run: pathlib.Path, copy: pathlib.Path, seed: str, before: dict[str, Any]) -> tuple[str, str, str]:
    """Make one variant and read it: what was done, what came of it, in words."""
    from hwrx.errors import HwrxError

    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, symlinks=True, ignore=lambda folder, names: bitflips.MADE_AGAIN & set(names))
    draw = random.Random(seed)
    done, forgery = [], False
    for _ in range(draw.choice((1, 1, 1, 2))):
        name = draw.choice(list(CHANGES))
        try:
            forgery |= CHANGES[name](draw, copy)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue  # it does not go together with the one before
        done.append(name)
    what = "+".join(done)
    try:
        after = bitflips.read(copy, report=draw.random() < 0.1)
    except HwrxError as error:
        return what, "refused", str(error)
    except Exception:
        return what, "TRACEBACK", traceback.format_exc()
    if forgery:
        return what, "named" if after["damage"] else "harmless", ""
    if (run / "parts").exists() and all(before.get(key) == value for key, value in after.items()):
        return what, "harmless", "what is missing of a run that never ended is what an earlier kill would have left"
    return (what, *bitflips.judged(before, after))


def try_in_child(run: pathlib.Path, copy: pathlib.Path, seeds: list[str]) -> list[tuple[str, str, str]]:
    """Try variants in a child until it has tried all, or died."""

    def try_variants() -> Iterator[tuple[str, str, str]]:
        before = bitflips.read(run)
        for seed in seeds:
            yield try_variant(run, copy, seed, before)

    return [tuple(found) for found in bitflips.yielded_in_child(try_variants)]  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=4000, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        runs = bitflips.in_a_child(lambda: [str(path) for path in bitflips.made(root / "made")])
        for number, run in enumerate(map(pathlib.Path, runs)):
            share = options.variants // len(runs) + (number < options.variants % len(runs))
            seeds = [f"{options.seed} {number} {variant}" for variant in range(share)]
            while seeds:
                some = try_in_child(run, root / "copy", seeds)
                if len(some) < len(seeds):
                    some.append(("?", "ABORT", f"the process died at the variant of seed '{seeds[len(some)]}'"))
                found += some
                seeds = seeds[len(some) :]
    counts = collections.Counter(result for _, result, _ in found)
    bad = [each for each in found if each[1] in bitflips.BAD]
    if options.json:
        print(json.dumps({"variants": len(found), **{kind: counts[kind] for kind in bitflips.KINDS}, "bad": bad}))
    else:
        print(len(found), "variants:", *(f"{kind} {counts[kind]}" for kind in bitflips.KINDS))
        for what, result, words in bad[:10]:
            print(f"{result} after {what}: {words}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
