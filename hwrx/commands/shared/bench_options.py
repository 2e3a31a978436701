"""The options that name hosts of the inventory, and what they make of a command's other words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from hwrx.bench.inventory import load_bench
from hwrx.control.environment import Host, parse_environment
from hwrx.errors import UsageError
from hwrx.runs import traffic
from hwrx.runs.experiment import Experiment
from hwrx.runs.testbed import Wanted

bench_option = click.option(
    "--bench",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The inventory: bench.toml, net.config or a labgrid environment [$HWRX_BENCH, ./bench.toml].",
)


def host_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add --client, --server and --bench."""
    for option in (
        bench_option,
        click.option("--server", metavar="HOST", help="The server, a host of the inventory."),
        click.option("--client", metavar="HOST", help="The client, a host of the inventory [here]."),
    ):
        command = option(command)
    return command


def find_peer(peer: str, bench: Path | None) -> Host:
    """Return what a peer's words mean: an environment, or a host of the inventory.

    :raises UsageError: if they are neither.
    """
    try:
        parse_environment(peer)
    except UsageError:
        return load_bench(bench).find_host(peer).host
    return Host(name=peer, reach=peer)


def match_ports(client: str | None, server: str | None, bench: Path | None, how: str) -> dict[str, object]:
    """Return the options that run each port of one host against the port in its place of another.

    :param how: `together`, or each pair in `turn`
    :raises UsageError: if a host is not named, or the inventory has no ports of it, or not as many as of the other
    """
    if client is None or server is None:
        raise UsageError("--all-ports is between two hosts of the inventory", remedy="--client HOST --server HOST")
    inventory = load_bench(bench)
    ports = {name: [port.name for port in inventory.find_host(name).ports] for name in (client, server)}
    for name, found in ports.items():
        if not found:
            raise UsageError(
                f"{inventory.source}: the host '{name}' has no list of its ports",
                remedy=f'ports = [{{verbs = "mlx5_0"}}, {{verbs = "mlx5_1"}}] in its table; hwrx devices --peer {name}'
                " tells them",
            )
    if client == server or len(ports[client]) != len(ports[server]):
        raise UsageError(
            f"{inventory.source}: {len(ports[client])} ports of '{client}' and {len(ports[server])} of '{server}' are"
            " not pairs",
            remedy="two hosts with as many ports each; of one machine two tables, each with the ports of one side",
        )
    traffic = "matched" if how == "together" else "matched-pairs"
    return {"clients": ports[client], "servers": ports[server], "traffic": traffic}


def with_hosts(
    wanted: Wanted, experiment: Experiment, bench: Path | None, client: str | None, server: str | None
) -> Wanted:
    """Return what is wanted with the hosts that the options and the experiment name, as the inventory has them.

    :raises UsageError: if one is not in it, or there is none.
    """
    several = [] if experiment.between_guests else traffic.hosts_of(experiment)
    if not several and client is None and server is None:
        return wanted
    inventory = load_bench(bench)
    return msgspec.structs.replace(
        wanted,
        client=inventory.find_host(client).host if client else None,
        server=inventory.find_host(server).host if server else None,
        hosts=tuple(inventory.find_host(name).host for name in several),
    )
