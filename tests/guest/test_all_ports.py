"""All ports of a machine, pair by pair: in turn, or at the same time. The ports are rxe devices on two wires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from guest_ends import ROLES, Places, Wire

from hwrx.cli import main
from hwrx.control.places import Place
from hwrx.runs import reading


def table(name: str, places: list[Place]) -> str:
    ports = ", ".join(
        f'{{verbs = "{place.verbs}", address = "{place.address}", netdev = "{place.netdev}"}}' for place in places
    )
    return f'[hosts.{name}]\nreach = "local"\nports = [{ports}]\n'


def received(device: str | None) -> int:
    """Packets that rxe has had from the wire."""
    return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/rcvd_pkts").read_text())


def compared(folder: Path, pair: Places, spare: Wire, how: str) -> list[dict[str, Any]]:
    bench = folder / "bench.toml"
    bench.write_text("".join(table(role, [pair[role], spare.places[role]]) for role in ROLES))
    words = ["compare", "--paths", "udp,rdma-send", "--messages", "60", "--repeats", "1", "--json"]
    words += ["--bench", str(bench), "--client", "client", "--server", "server", "--runs", str(folder)]
    assert main([*words, "--all-ports", how]) == 0
    rows = reading.load_run(folder / "latest").rows
    for row in rows:
        row["by_flow"] = json.loads(row["by_flow"])
    return rows


@pytest.mark.parametrize("how", ["turn", "together"])
def test_each_port_carries_its_own_messages_to_the_port_in_its_place(
    pair: Places, spare: Wire, how: str, tmp_path: Path
) -> None:
    devices = [places[role].verbs for places in (pair, spare.places) for role in ROLES]
    before = {device: received(device) for device in devices}
    rows = compared(tmp_path, pair, spare, how)
    pairs = [("client-port1", "server-port1"), ("client-port2", "server-port2")]
    asked = {"turn": ["client-port1>server-port1", "client-port2>server-port2"]}
    asked["together"] = ["client-port[1-2]>>server-port[1-2]"]
    for path in ("udp", "rdma-send"):
        own = [row for row in rows if row["path"] == path]
        assert sorted(row["flows"] for row in own) == asked[how]
        flows = [flow for row in own for flow in row["by_flow"]]
        assert sorted((flow["client"], flow["server"]) for flow in flows) == pairs
        assert all(flow["delivered"] == flow["posted"] == 176 for flow in flows)
    # a message and its answer are packets of both devices of a wire, and of no other
    assert all(received(device) - before[device] >= 176 for device in devices)
