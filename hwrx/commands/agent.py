"""`hwrx agent`: one endpoint behind a pipe; `hwrx guest`: those of a virtual machine, behind one port."""

from __future__ import annotations

import sys

import click


@click.command()
def agent() -> None:
    """Drive one endpoint over standard input and output.

    The other side is a controller (`hwrx compare`, `hwrx lab run`) that starts this command where the endpoint is to
    be: here, in a network namespace, over ssh, or by a scheduler. It speaks length-prefixed JSON; nobody types it.

    \b
    Example, two machines:
      hwrx compare --paths udp,tcp --peer ssh:other-host
    """
    from hwrx.agent import main

    main()


@click.command(hidden=True)
@click.option("--topology", required=True, help="What to set up before the host is told that the guest is ready.")
@click.option("--options", default="{}", help="The topology's options, as JSON.")
def guest(topology: str, options: str) -> None:
    """Serve the host over the virtio-serial port of the lab's virtual machine; nobody types it."""
    import msgspec

    from hwrx.guest import main

    sys.exit(main(topology, msgspec.json.decode(options, type=dict)))
