"""Messages that differ in size within a trial: drawn from a distribution before the loop, and known to both ends.

Whatever a distribution is written as becomes one form, a `mix`: sizes with whole weights, "18:7,524:4,1472:1", if it
has a name with that in front. So a run says what was drawn from by itself, also if nobody has the file any more.
"""

from __future__ import annotations

import collections
import functools
import math
import re
import statistics
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from cython_ext.core.lengths import read_entries
from hwrx.control.messages import MIX_FORMS
from hwrx.errors import UsageError
from hwrx.host.outside import clean_name

if TYPE_CHECKING:
    from hwrx.control.messages import Setting

# Frames of 64, 570 and 1518 bytes, 7 to 4 to 1, which testers of routers call the Internet's mix: what UDP over IPv4
# carries in them (18 bytes of Ethernet, 20 of IPv4, 8 of UDP).
NAMED = {"imix": "18:7,524:4,1472:1"}
SMALLEST, LARGEST = 8, 1 << 30  # bytes; of a message's header, and of Setting.size
MOST_SIZES = 4096  # of one mix
MOST_WEIGHT = 10**6
ENTRIES = 1 << 16  # of a table, at most: longer trials begin it anew
QUANTILES = 256  # of a continuous distribution: so many sizes, one as frequent as the other
CLASSES = 8  # that figures are told of: a mix of more sizes has as many ranges, of as many messages each
LARGEST_FILE = 64 << 20  # bytes
_PAIR = re.compile(r"(\d{1,10}):(\d{1,7})")
_NUMBER = r"\s*(\d{1,10}(?:\.\d{1,10})?)\s*"
_LOGNORMAL = re.compile(rf"lognormal\({_NUMBER},{_NUMBER}(?:,\s*(\d{{1,10}})\s*)?\)")


class Mix(Struct, frozen=True):
    """A distribution of sizes: `sizes` ascending, bytes, and how often each is drawn, in proportion."""

    name: str  # what the user called it; "" if by its weights
    sizes: tuple[int, ...]
    weights: tuple[int, ...]

    @property
    def words(self) -> str:
        """What stands in a setting, and `read_mix` takes back."""
        pairs = ",".join(f"{size}:{weight}" for size, weight in zip(self.sizes, self.weights, strict=True))
        return f"{self.name} {pairs}".strip()

    @property
    def label(self) -> str:
        """What it is called in tables and labels."""
        if self.name or len(self.sizes) <= CLASSES:
            return self.name or self.words
        return f"{len(self.sizes)}-sizes"

    @property
    def mean(self) -> float:
        """Bytes of a message in the long run."""
        return sum(s * w for s, w in zip(self.sizes, self.weights, strict=True)) / sum(self.weights)


@functools.lru_cache(maxsize=64)
def read_mix(words: str) -> Mix:
    """Return the mix that stands in a setting.

    :raises UsageError: if it is none
    """
    name, _, pairs = words.rpartition(" ")
    found = [_PAIR.fullmatch(pair) for pair in pairs.split(",")]
    if None in found:
        raise UsageError(
            f"'{clean_name(words)}' is neither a whole number of bytes nor a distribution of sizes",
            remedy=f"allowed: {MIX_FORMS}",
        )
    counted: collections.Counter[int] = collections.Counter()
    for pair in found:
        assert pair is not None
        counted[int(pair[1])] += int(pair[2])
    return _checked(Mix(name, *_columns(counted)), words)


def own_label(words: str) -> str:
    """Return the label of the mix that stands in a setting, with a checksum of the weights if it does not tell them."""
    label = read_mix(words).label
    told = label == words or label.startswith("lognormal(") or words == f"{label} {NAMED.get(label)}"
    return label if told else f"{label}~{zlib.crc32(words.encode()):08x}"


def tell_apart(several: Iterable[str]) -> dict[str, str]:
    """Return what each of these mixes is called among the others: its label, or if two have the same `own_label`."""
    labels = {words: read_mix(words).label for words in several if words}
    often = collections.Counter(labels.values())
    return {words: label if often[label] == 1 else own_label(words) for words, label in labels.items()}


def parse_mix(words: str, where: Path = Path()) -> Mix:
    """Return the mix that a user means; a file is read here and now.

    :param words: one of FORMS, or what `Mix.words` gave
    :param where: directory that a relative path of a file is in
    :raises UsageError: if it is none of them, a size cannot be a message's, or the file cannot be read
    """
    words = words.strip()
    if words in NAMED:
        return read_mix(f"{words} {NAMED[words]}")
    if words.startswith("file:"):
        return _of_file(where / words.removeprefix("file:"))
    if (found := _LOGNORMAL.fullmatch(words)) is not None:
        return _lognormal(words, float(found[1]), float(found[2]), int(found[3]) if found[3] else LARGEST)
    return read_mix(words)


def table_entries(setting: Setting, *, fetched: bool) -> int:
    """Return how many entries the table of sizes of a setting has, a power of two: message k has the size k modulo it.

    :param fetched: whether its path's messages are READ (`Path.full_rtt`). Each entry is then a slot at the end that is
        read from, so there are fewer
    """
    if fetched:
        return read_entries(setting.size)
    if setting.duration is not None:  # nobody knows how many messages it will have
        return ENTRIES
    return min(ENTRIES, 1 << max(1, (setting.total - 1).bit_length()))


def draw_sizes(setting: Setting, repeat: int, seed: int | None, *, fetched: bool) -> npt.NDArray[np.uint32]:
    """Return the table of sizes of a trial, uint32 bytes; message k has entry k modulo its length.

    The draws belong to the experiment's seed and the repeat, as `arrivals` has them: within one all paths see the same
    sizes in the same order, and both ends of a trial draw the same by themselves. Whole numbers are compared, so no
    machine rounds otherwise.
    """
    mix = read_mix(setting.mix)
    generator = np.random.RandomState([0 if seed is None else seed, repeat, 1])  # its sequence is frozen (NEP 19)
    bounds = np.cumsum(np.array(mix.weights, dtype=np.int64))
    draws = np.floor(generator.random_sample(table_entries(setting, fetched=fetched)) * bounds[-1]).astype(np.int64)
    chosen = np.searchsorted(bounds, draws, side="right")
    return np.asarray(np.array(mix.sizes, dtype=np.uint32)[chosen], dtype=np.uint32)


def sizes_of(
    setting: Setting, repeat: int, seed: int | None, sequence: npt.NDArray[np.uint32], *, fetched: bool
) -> npt.NDArray[np.uint32]:
    """Return the sizes of recorded messages with these numbers, which count from the first after the warm-up."""
    table = draw_sizes(setting, repeat, seed, fetched=fetched)
    return np.asarray(table[(sequence.astype(np.int64) + setting.warmup) % len(table)], dtype=np.uint32)


def check_mix(setting: Setting) -> None:
    """UsageError if the setting's mix cannot be, or is not of messages up to its size."""
    mix = read_mix(setting.mix)
    if mix.sizes[-1] != setting.size:
        raise UsageError(
            f"the longest message of the mix has {mix.sizes[-1]} bytes, and the size is {setting.size}",
            remedy='give the mix as a size: sizes = ["imix"]',
        )


def size_classes(mix: Mix) -> list[tuple[int, int]]:
    """Return the classes of sizes that figures are told of, each from its least to its largest, in bytes.

    Every size if they are few; else ranges that hold about as many messages each.
    """
    if len(mix.sizes) <= CLASSES:
        return [(size, size) for size in mix.sizes]
    ends = np.cumsum(mix.weights) / sum(mix.weights)
    cuts = sorted({int(np.searchsorted(ends, k / CLASSES, side="left")) for k in range(1, CLASSES + 1)})
    firsts = [0, *(cut + 1 for cut in cuts[:-1])]
    return [(mix.sizes[first], mix.sizes[cut]) for first, cut in zip(firsts, cuts, strict=True)]


def _columns(counted: collections.Counter[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(sorted(counted)), tuple(counted[size] for size in sorted(counted))


def _checked(mix: Mix, words: str) -> Mix:
    shown = clean_name(words)
    if len(mix.sizes) > MOST_SIZES:
        raise UsageError(
            f"'{shown}' has {len(mix.sizes)} different sizes, and a mix has at most {MOST_SIZES}",
            remedy="round them, to 16 bytes say",
        )
    if not (mix.sizes and mix.sizes[0] >= SMALLEST and mix.sizes[-1] <= LARGEST):
        raise UsageError(f"'{shown}': a message has {SMALLEST} to {LARGEST} bytes", remedy=f"allowed: {MIX_FORMS}")
    if not all(1 <= weight <= MOST_WEIGHT for weight in mix.weights):
        raise UsageError(
            f"'{shown}': a weight is a whole number from 1 to {MOST_WEIGHT}", remedy=f"allowed: {MIX_FORMS}"
        )
    divisor = math.gcd(*mix.weights)
    return Mix(mix.name, mix.sizes, tuple(weight // divisor for weight in mix.weights))


def _lognormal(words: str, median: float, sigma: float, largest: int) -> Mix:
    """As many sizes as QUANTILES, in the middle of each part; what is beyond the smallest or `largest` becomes that."""
    shown = clean_name(words)
    if not (SMALLEST <= median <= LARGEST and 0 < sigma <= 5 and SMALLEST <= largest <= LARGEST):
        raise UsageError(
            f"'{shown}': the median and the largest are {SMALLEST} to {LARGEST} bytes, sigma is above 0 and at most 5",
            remedy="for example lognormal(512,0.8,1472)",
        )
    normal = statistics.NormalDist()
    places = ((k + 0.5) / QUANTILES for k in range(QUANTILES))
    sizes = (round(median * math.exp(sigma * normal.inv_cdf(place))) for place in places)
    counted = collections.Counter(min(max(size, SMALLEST), largest, LARGEST) for size in sizes)
    return _checked(Mix(re.sub(r"\s", "", words), *_columns(counted)), words)


def _of_file(path: Path) -> Mix:
    """Every line of the file is a size, as often as it stands there; blank lines and comments (#) are not."""
    counted: collections.Counter[int] = collections.Counter()
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)  # a device, or another program, may never come to an end
        if len(content) > LARGEST_FILE:
            raise UsageError(f"{path} is larger than {LARGEST_FILE >> 20} MiB", remedy="take a sample of its lines")
        for number, line in enumerate(content.decode("utf-8").split("\n"), 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            if not (text.isascii() and text.isdecimal() and len(text) <= 10):
                raise UsageError(
                    f"{path}, line {number}: '{clean_name(text)}' is not a number of bytes", remedy="a size a line"
                )
            counted[int(text)] += 1
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"the file of sizes {path} cannot be read: {reason}", remedy="a size a line") from error
    if not counted:
        raise UsageError(f"the file of sizes {path} has none", remedy="a size a line")
    total = counted.total()
    if total > MOST_WEIGHT:  # as close as weights can say it
        counted = collections.Counter(
            {size: max(1, round(count * MOST_WEIGHT / total)) for size, count in counted.items()}
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:40]
    return _checked(Mix(name, *_columns(counted)), f"file:{path}")
