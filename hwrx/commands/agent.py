"""`hwrx agent`: one endpoint behind a pipe."""

from __future__ import annotations

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
    # `hwrx agent --help` needs no endpoint
    from hwrx.paths.agent import main

    main()
