"""A witness: bpftrace, which shares nothing with our programs, counts the same run, and comes to the same figures."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tracing import count, trace

from hwrx.control.messages import Setting
from hwrx.runs.schedule import Pair
from hwrx.timelines.traced import Directions, RunTracer

# bytes of a frame without its Ethernet header: IPv4, UDP and 200 bytes of message
PROGRAM = """
BEGIN { printf("ready\\n"); }
tracepoint:net:netif_receive_skb /args->len == 228/ { @received = count(); }
kprobe:skb_consume_udp /arg2 == 200/ { @taken = count(); @taken_bytes = sum(arg2); }
kprobe:rxe_mr_copy /arg4 == 0/ { @to_mr = count(); @to_mr_bytes = sum(arg3); }
kprobe:rxe_mr_copy /arg4 == 1/ { @from_mr = count(); @from_mr_bytes = sum(arg3); }
kprobe:rxe_cq_post { @completions = count(); }
"""


@contextlib.contextmanager
def witness(found: dict[str, int]) -> Iterator[None]:
    """Count from here to the end of the block."""
    command = ["bpftrace", "-f", "json", "-e", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "ready" in line:
                break
        else:
            assert process.stderr is not None
            pytest.fail(f"bpftrace did not start: {process.stderr.read()}")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
    for line in rest.splitlines():
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if said["type"] == "map":
            found.update({name.removeprefix("@"): value for name, value in said["data"].items()})


def copied(found: Directions, stage: str) -> int:
    return sum(row.bytes for row in found.ledger.rows if row.stage == stage)


def test_bpftrace_counts_the_same(needs: Callable[..., None], traced_pair: Pair, tracer: RunTracer) -> None:
    needs("bpftrace")
    theirs: dict[str, int] = {}
    more: dict[str, Any] = {"messages": 200, "wait": "event", "warmup": 20, "limit": 60.0}
    with witness(theirs):
        datagrams = trace(tracer, traced_pair, 1, Setting(path="udp", size=200, **more))
        # not inline: rxe_mr_copy carries the payload on both sides
        verbs = trace(tracer, traced_pair, 2, Setting(path="rdma-send", size=1000, inline=0, **more))
    assert count(datagrams, "netif_receive_skb") == theirs["received"]
    assert count(datagrams, "copied to the user") == theirs["taken"]
    assert copied(datagrams, "copied to the user") == theirs["taken_bytes"]
    assert count(verbs, "rxe_mr_copied") == theirs["to_mr"]
    assert copied(verbs, "rxe_mr_copied") == theirs["to_mr_bytes"]
    # what was sent again is copied again: both see it
    assert count(verbs, "rxe_mr_copy from MR") == theirs["from_mr"]
    assert copied(verbs, "rxe_mr_copy from MR") == theirs["from_mr_bytes"]
    # theirs are the send's completions as well
    assert count(verbs, "rxe_cq_posted") <= theirs["completions"]
