"""The ledger on the guest's NICs: what the endpoints stamp themselves, and each copy between the ring and the user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_ends import ROLES
from tracing import check, count, trace

from hwrx import paths, stages
from hwrx.control.messages import Setting
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology

MESSAGES = 60
OWN = ["descriptor seen", "parsed", "looked up"]


@pytest.fixture(scope="module")
def nics() -> Iterator[Pair]:
    with topology.build_topology("nic") as made, Pair(Bed(made.places, dict.fromkeys(ROLES, "local"), {})) as agents:
        yield agents


# Below 256 bytes the kernel's e1000e copies a frame into an skb of its own (copybreak); the generic XDP hook wants more
# headroom than the driver leaves, and copies the frame for it.
@pytest.mark.parametrize(
    ("path", "size", "sender", "receiver"),
    [
        ("udp", 64, {"ip_generic_getfrag"}, {"copybreak", "copied to the user"}),
        ("udp", 1400, {"ip_generic_getfrag"}, {"copied to the user"}),
        ("packet-ring", 64, set(), {"copybreak", "skb_copy_bits"}),
        ("packet-ring", 1400, set(), {"skb_copy_bits"}),
        ("xdp", 64, {"skb_store_bits"}, {"copybreak", "pskb_expand_head", "xsk_generic_rcv"}),
        ("xdp", 1400, {"skb_store_bits"}, {"pskb_expand_head", "xsk_generic_rcv"}),
        ("nic-ring", 64, set(), set()),
        ("nic-ring", 1400, set(), set()),
        ("nic-pio", 64, {"port write"}, {"port read"}),
    ],
)
def test_each_copy_between_the_ring_and_the_user_is_found(
    nics: Pair, tracer: RunTracer, path: str, size: int, sender: set[str], receiver: set[str]
) -> None:
    setting = Setting(path=path, size=size, messages=MESSAGES, wait="event", warmup=5, limit=60.0)
    found = trace(tracer, nics, 700 + size + len(path), setting)
    # on a busy machine an answer may come after the endpoint's patience: it was copied, and does not count as delivered
    late = found.measured.tally["lost"]
    for timelines in found.timelines.values():
        check(timelines, MESSAGES - late)
        names = [stage.name for stage in timelines.stages]
        assert [name for name in names if name in OWN] == (OWN if paths.way_of(path) in stages.FRAMES else [])
    ledger = found.ledger
    assert ledger.balanced or late
    for side, copying in (("sender", sender), ("receiver", receiver)):
        rows = {row.stage: row.per_byte for row in ledger.rows if row.side == side and row.kind == "copied"}
        assert rows == pytest.approx(dict.fromkeys(copying, 1.0), abs=5e-3 + late / MESSAGES)
    dma = [row.per_byte for row in ledger.rows if row.kind == "DMA"]
    # each byte stands where the NIC wrote it
    assert dma == ([pytest.approx(1.0, abs=late / MESSAGES)] if path == "nic-ring" else [])


def test_the_driver_offers_each_frame_to_gro(nics: Pair, tracer: RunTracer) -> None:
    """A driver's skb does not say where its network header is before GRO has looked."""
    setting = Setting(path="udp", size=64, messages=MESSAGES, wait="event", warmup=5, limit=60.0)
    found = trace(tracer, nics, 799, setting)
    total = 2 * (setting.warmup + setting.messages + setting.cooldown)
    assert total <= count(found, "napi_gro_receive") <= total + 2
