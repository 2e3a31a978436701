"""`hwrx compare`: one experiment, from a file or from options, on a testbed."""

from __future__ import annotations

from pathlib import Path

import click

from hwrx.commands.shared.bench_options import host_options, match_ports, with_hosts
from hwrx.commands.shared.options import Many, experiment_options
from hwrx.commands.shared.running import run_and_report
from hwrx.errors import UsageError
from hwrx.host import disk
from hwrx.runs import reading
from hwrx.runs.experiment import described_experiment, names_topology
from hwrx.runs.testbed import Wanted
from hwrx.wires import topology as topologies

# of a topology whose ends the user names, the options for them say enough
PUT_UP = [name for name, known in topologies.KNOWN.items() if known.where != "named"]


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[EXPERIMENT]")
@experiment_options
@click.option("--topology", type=click.Choice(PUT_UP), help="What lies between the two ends.")
@click.option("--here", is_flag=True, help="Use this machine's own kernel and devices, no virtual machine.")
@click.option("--device", type=Many(str, "DEV[,DEV]"), help="Verbs devices of client and server on this machine.")
@click.option("--peer", help="Where the other end runs: local, netns:NAME, ssh:HOST, or a command with {agent}.")
@click.option("--peer-device", help="Verbs device at the peer.")
@click.option("--peer-address", help="IP address of the peer, for sockets.")
@click.option("--address", help="The client's own IP address, for sockets [the one that leads to the peer's].")
@host_options
@click.option(
    "--all-ports",
    type=click.Choice(["turn", "together"]),
    help="All ports that the inventory has of client and server, pair by pair: in turn, or at the same time.",
)
@click.option("--log", type=click.Path(path_type=Path), help="File that gets all that a guest prints.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Where run directories go.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that did not end.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, how long and how much disk it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def compare(
    file: Path | None,
    topology: str | None,
    here: bool,
    device: list[str] | None,
    peer: str | None,
    peer_device: str | None,
    peer_address: str | None,
    address: str | None,
    client: str | None,
    server: str | None,
    bench: Path | None,
    all_ports: str | None,
    log: Path | None,
    runs: Path,
    resume: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: object,
) -> None:
    """Compare delivery paths: run EXPERIMENT, or the one that the options describe.

    Options change what the file says. Without a file, --paths is needed.

    \b
    Examples:
      hwrx compare lab/experiments/first.toml
      hwrx compare --paths udp,tcp --size 64,1400 --topology netns
      hwrx compare lab/experiments/first.toml --device mlx5_0,mlx5_1
      hwrx compare --paths rdma-send --device mlx5_0 --peer ssh:other --peer-device mlx5_0
      hwrx compare --paths udp --peer ssh:other --peer-address 192.0.2.7 --cpu 2,2
      hwrx compare --paths udp,tcp --client node1 --server node2
      hwrx compare --paths udp --clients 'node[1-8]' --servers sink --traffic incast
      hwrx compare --paths rdma-send --client node1 --server node2 --all-ports together
      hwrx compare --paths udp,rdma-send --topology wire
    """
    if log is not None:
        disk.check_target(log)
    wanted = Wanted(
        here=here,
        devices=tuple(device or ()),
        peer=peer,
        peer_device=peer_device,
        peer_address=peer_address,
        address=address,
        log=log,
    )
    if resume is not None:
        if file is not None or any(value is not None for value in (topology, all_ports, *options.values())):
            raise UsageError("--resume goes on with a run as it was begun: give neither a file nor options with it")
        experiment = reading.load_run(resume).experiment
        wanted = with_hosts(wanted, experiment, bench, client, server)
        run_and_report(experiment, wanted, runs=runs, dry_run=dry_run, as_json=as_json, resume=resume)
        return
    if topology is None and (wanted.explicit or client or server or _names_hosts(file, options["clients"])):
        topology = "hosts"
    if all_ports is not None:
        if topology not in (None, "hosts"):
            raise UsageError(
                f"--all-ports is between hosts of the inventory, and the topology is '{topology}'",
                remedy="leave out --topology",
            )
        if given := [f"--{name}" for name in ("clients", "servers", "traffic") if options[name] is not None]:
            raise UsageError(
                f"--all-ports says who sends to whom, and so does {given[0]}",
                remedy=f"leave out either; ports are hosts, too: --clients '{client or 'HOST'}-port[1-2]'",
            )
        options |= match_ports(client, server, bench, all_ports)
        client = server = None
    experiment = described_experiment(file, {**options, "topology": topology})
    wanted = with_hosts(wanted, experiment, bench, client, server)
    run_and_report(experiment, wanted, runs=runs, dry_run=dry_run, as_json=as_json)


def _names_hosts(file: Path | None, clients: object) -> bool:
    """Whether --clients are hosts of the inventory: of a file with a topology, they are what they are in that one."""
    return clients is not None and (file is None or not names_topology(file))
