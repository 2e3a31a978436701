"""How many instructions one end of a ping-pong executes in user space for each round trip, exactly.

The processor stops the end's thread after each instruction (PTRACE_SINGLESTEP of ptrace(2)); a system call is one
instruction of user space, whatever the kernel does in it. Which instructions run once a round trip is seen by how often
each is met; the median number of steps between two meetings of such a one is the figure. It is that of the whole loop:
what is done outside of the timed region (a buffer is made ready, a message recognised) is in it, so that a path's own
share is no larger.

Runs where the ends are, in a guest: `lab/bench/peers` starts it there. x86-64 only.

    lab/bench/steps.py '{"setting": {...}, "places": {...}, "peers": {...}, "trips": 20}'
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import json
import os
import signal
import statistics
import sys
import time
from typing import Any

import msgspec

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Connect, Hello, Prepare, Prepared, Ready, Role, Setting, Start, same_version
from hwrx.control.peers import Peer, ProcessChannel, wait_for_replies
from hwrx.control.places import Place
from hwrx.errors import HwrxError

# linux/ptrace.h
PTRACE_SINGLESTEP, PTRACE_GETREGS, PTRACE_DETACH = 9, 12, 17
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
REGISTERS, RIP = 27, 16  # of user_regs_struct
WALL = 0x40000000
LONGEST = 40_000  # instructions of one round trip
ROLES: tuple[Role, Role] = ("server", "client")
# Whoever started this watches over its time: in a guest that counts instructions the clock leaps to the next timer
# while a process waits for its disk
LIMIT = 1e7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: Any = None) -> None:
    """ptrace(2); HwrxError names the request that failed."""
    if _libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        raise HwrxError(f"ptrace request {request:#x} on {pid}: {os.strerror(number)}")


def stopped(pid: int) -> int:
    """Wait until the thread stops; the signal that stopped it."""
    _, status = os.waitpid(pid, WALL)
    if not os.WIFSTOPPED(status):
        raise HwrxError(f"process {pid} ended while its instructions were counted")
    return os.WSTOPSIG(status)


def trace(pid: int, trips: int) -> list[int]:
    """Return the addresses of the next instructions of a thread, of `trips` round trips at least.

    Signals are kept from it: the timers that interrupt a wait now and then are not a message's.
    """
    registers = (ctypes.c_ulong * REGISTERS)()
    ptrace(PTRACE_SEIZE, pid)
    ptrace(PTRACE_INTERRUPT, pid)
    stopped(pid)
    met: list[int] = []
    often: collections.Counter[int] = collections.Counter()
    # an instruction that is met so often is met once a round trip, or more often: `period` finds out
    while not often or (often.most_common(1)[0][1] < 64 * trips and len(met) < trips * LONGEST):
        for _ in range(1000):
            ptrace(PTRACE_SINGLESTEP, pid)
            if stopped(pid) == signal.SIGTRAP:
                ptrace(PTRACE_GETREGS, pid, registers)
                met.append(registers[RIP])
                often[registers[RIP]] += 1
        if sum(1 for count in often.values() if count >= trips) > len(often) // 2:
            break
    ptrace(PTRACE_DETACH, pid)
    return met


def period(met: list[int]) -> tuple[float, int]:
    """Return the instructions of a round trip, the median, and how many round trips were seen.

    An instruction that runs once a round trip is one that is met as often as most others are. Raises HwrxError if none
    was met twice.
    """
    often = collections.Counter(met)
    times, _ = max(collections.Counter(often.values()).items(), key=lambda pair: (pair[1] * (pair[0] > 1), pair[0]))
    if times < 2:
        raise HwrxError(f"no round trip was seen twice in {len(met)} instructions")
    once = next(address for address in met if often[address] == times)
    places = [index for index, address in enumerate(met) if address == once]
    return statistics.median(after - before for before, after in itertools.pairwise(places)), times - 1


def started(spec: str, role: Role) -> Peer:
    """Start an agent as Peer.start does, and greet it without its time limit."""
    peer = Peer(ProcessChannel(parse_environment(spec).agent_command(), role), role)
    same_version(peer.ask(Hello(), Hello, LIMIT))
    return peer


def count(asked: dict[str, Any]) -> dict[str, Any]:
    """Run a ping-pong between two agents and count the instructions of each end: role -> instructions, round trips."""
    setting = msgspec.convert(asked["setting"], Setting)
    places = {role: msgspec.convert(asked["places"][role], Place) for role in ROLES}
    peers = {role: started(asked["peers"].get(role, "local"), role) for role in ROLES}
    try:
        prepared = {}
        for role, other in (("server", "client"), ("client", "server")):
            message = Prepare(trial=1, role=role, setting=setting, here=places[role], there=places[other])
            prepared[role] = peers[role].ask(message, Prepared, LIMIT)
        for role, other in (("client", "server"), ("server", "client")):
            peers[role].send(Connect(remote=prepared[other].remote))
        wait_for_replies(dict.fromkeys(peers.values(), Ready), LIMIT)
        for role in ROLES:
            peers[role].send(Start())
        time.sleep(0.2)
        found = {}
        for role in ROLES:
            channel = peers[role]._channel
            if not isinstance(channel, ProcessChannel):
                raise HwrxError(f"the {role}'s process is not on this machine")
            instructions, trips = period(trace(channel.process.pid, asked["trips"]))
            found[role] = {"instructions": instructions, "trips": trips}
        return found
    finally:
        for peer in peers.values():
            peer.kill()


if __name__ == "__main__":
    try:
        print(json.dumps(count(json.loads(sys.argv[1]))))
    except HwrxError as problem:
        sys.exit(f"steps: {problem}")
