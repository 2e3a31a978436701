"""All ports of a machine, pair by pair: in turn, or at the same time. The ports are rxe devices on two wires."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from guest_ends import ROLES, Places, Wire

from hwrx.bench.inventory import load_bench
from hwrx.control.messages import Setting
from hwrx.control.nodes import Traffic, write_flows
from hwrx.control.places import Place
from hwrx.runs import fleet
from hwrx.runs.hosts import HostsBed


def table(name: str, places: list[Place]) -> str:
    ports = ", ".join(
        f'{{verbs = "{place.verbs}", address = "{place.address}", netdev = "{place.netdev}"}}' for place in places
    )
    return f'[hosts.{name}]\nreach = "local"\nports = [{ports}]\n'


def devices_of(wires: Iterable[Places]) -> list[str | None]:
    return [places[role].verbs for places in wires for role in ROLES]


def received(device: str | None) -> int:
    """Packets that rxe has had from the wire."""
    return int(Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters/rcvd_pkts").read_text())


def test_each_port_carries_its_own_messages_to_the_port_in_its_place(pair: Places, spare: Wire, tmp_path: Path) -> None:
    file = tmp_path / "bench.toml"
    file.write_text("".join(table(role, [pair[role], spare.places[role]]) for role in ROLES))
    bench = load_bench(file)
    ports = {role: [port.name for port in bench.find_host(role).ports] for role in ROLES}
    kinds: tuple[Traffic, ...] = ("matched", "matched-pairs")
    together, *turn = (words for kind in kinds for words in write_flows(kind, ports["client"], ports["server"]))
    assert together == "client-port[1-2]>>server-port[1-2]"
    wires = dict(zip(turn, (pair, spare.places), strict=True))
    hosts = [each.host for each in bench.find_hosts([*ports["client"], *ports["server"]])]
    with fleet.Fleet(HostsBed(hosts)) as agents:
        for path in ("rdma-send", "udp"):
            for words in (*turn, together):
                before = {device: received(device) for device in devices_of(wires.values())}
                found = agents.measure(0, Setting(path=path, flows=words, messages=60))
                flows = {f"{flow['client']}>{flow['server']}": flow for flow in found.between["by_flow"]}
                assert list(flows) == (turn if words == together else [words])
                assert all(flow["delivered"] == flow["posted"] == 176 for flow in flows.values())
                if path == "rdma-send":  # a message and its answer are packets of both devices of a wire
                    used = devices_of(wires[flow] for flow in flows)
                    assert all((received(device) - before[device] >= 176) == (device in used) for device in before)
