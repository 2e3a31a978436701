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
