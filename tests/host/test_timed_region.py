"""Between two stamps lies the path's own work alone: counted in guest instructions, checks of messages or not.

`lab/bench/timed_region` measures the same for more paths and all sizes.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from hwrx.control.messages import Setting
from hwrx.lab.vm import Guest
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import GuestBed
from hwrx.timelines import counted

pytestmark = pytest.mark.beside

# to fill or to verify one such message takes more than a thousand instructions, which is beyond the bound on each path
SIZE = 1000
BOUND = 0.002
# messages are of several kinds, by where they meet the interrupt's end and the scheduler, and how many there are of
# each differs between trials: of rdma-ud's, all of a trial may be 5 % dearer. Of some trials one has the cheapest
TRIALS = 4
MESSAGES = 400
PATHS = ("udp", "tcp", "rdma-send", "rdma-write-imm", "rdma-read", "rdma-ud", "xdp")


@pytest.fixture(scope="module")
def guest(needs: Callable[..., None]) -> Iterator[Guest]:
    """A guest that counts instructions; booted once for all tests."""
    needs("guest")
    with Guest("pair", clock="icount") as booted:
        yield booted


@pytest.fixture(scope="module")
def pair(guest: Guest) -> Iterator[Pair]:
    with Pair(GuestBed(guest)) as agents:
        yield agents


KHUGEPAGED = "/sys/kernel/mm/transparent_hugepage/khugepaged"
# 256 MiB that may be huge pages and are small ones: touched before the kernel is told that they may
EATER = """
import mmap
memory = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(0, len(memory), 4096):
    memory[page] = 1
memory.madvise(mmap.MADV_HUGEPAGE)
print("there", flush=True)
input()
"""


@pytest.fixture
def looked_after(guest: Guest) -> Iterator[Callable[[], None]]:
    """What has khugepaged look at memory at every tick, and put small pages together, until the test ends.

    Its nice value is 19: beside two ends that keep the CPU busy it would hardly ever run.
    """
    names = ("scan_sleep_millisecs", "pages_to_scan")
    before = [guest.run(["cat", f"{KHUGEPAGED}/{name}"]).stdout.strip() for name in names]

    def put(values: Sequence[str], nice: int) -> None:
        words = [f"echo {value} > {KHUGEPAGED}/{name}" for name, value in zip(names, values, strict=True)]
        renice = f"renice -n {nice} -p $(pgrep -x khugepaged)"
        done = guest.run(["sh", "-ec", "; ".join([renice, *reversed(words)])])
        assert done.returncode == 0, done.stdout

    with contextlib.closing(guest.command([sys.executable, "-c", EATER])) as eater:
        assert eater.recv(16) == b"there\n"
        yield lambda: put(("1", "512"), -10)
        put(before, 19)


@pytest.mark.parametrize("path", PATHS)
def test_a_round_trip_takes_as_many_instructions_whether_messages_are_checked_or_not(pair: Pair, path: str) -> None:
    numbers = itertools.count(2 * TRIALS * PATHS.index(path))
    cheapest = {0: 1 << 62, 1: 1 << 62}
    for _ in range(TRIALS):
        for every in cheapest:
            # TCP's receive windows grow while messages come, which takes instructions: the warm-up is for that
            setting = Setting(
                path=path,
                size=SIZE,
                messages=MESSAGES,
                warmup=200,
                cooldown=4,
                check_every=every,
                schedule="batch",
                limit=60.0,
            )
            measured = pair.measure(next(numbers), setting)
            assert (measured.tally["checked"] > 0) == bool(every)
            assert (measured.tally["corrupt"], measured.tally["lost"]) == (0, 0)
            cheapest[every] = min(cheapest[every], int(measured.ns.min()))
        if cheapest[1] == pytest.approx(cheapest[0], rel=BOUND):
            return
    pytest.fail(f"the cheapest message takes {cheapest[0]} ns, and {cheapest[1]} if all are checked")


def test_what_the_kernel_does_for_memory_is_no_messages_cost(pair: Pair, looked_after: Callable[[], None]) -> None:
    found = []
    for number, begin in enumerate((lambda: None, looked_after)):
        setting = Setting(path="udp", messages=2000, warmup=200, schedule="batch", limit=60.0)
        found.append(pair.measure(100 + number, setting, before=lambda peers, begin=begin: begin()).cpu)
    without, beside = found
    assert beside["housekeeping"] > without["housekeeping"] + 0.01 * without["busy"]
    assert beside["busy"] == pytest.approx(without["busy"], rel=0.01)


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_who_counts_by_actor_gives_the_ends_what_their_own_clocks_say(pair: Pair, path: str) -> None:
    """Most messages are warm-up: with those in it, the time would be six times as long."""
    counted.attach_counter(pair)
    setting = Setting(path=path, messages=500, warmup=2500, check_every=0, schedule="batch", limit=60.0)
    found, measured = counted.run_twin(pair, 105, setting, 0.3, alone=True)
    assert min(found["user"], found["system"], found["softirq"]) > 0
    # the kernel charges softirqs and interrupts to whoever they interrupt
    ends = sum(found[actor] for actor in ("user", "system", "softirq", "interrupt"))
    assert ends == pytest.approx(measured.cpu["thread"], rel=0.001)


def test_who_counts_by_actor_gives_it_to_nobody_either(pair: Pair, looked_after: Callable[[], None]) -> None:
    counted.attach_counter(pair)
    looked_after()
    setting = Setting(path="udp", messages=2000, warmup=200, schedule="batch", limit=60.0)
    found, measured = counted.run_twin(pair, 110, setting, 1.0, alone=True)
    assert measured.cpu["housekeeping"] > 0.01 * measured.cpu["busy"]
    assert found["housekeeping"] > 0.8 * measured.cpu["housekeeping"]
