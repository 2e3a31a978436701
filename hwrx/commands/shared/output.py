"""What commands that print or write for others have in common."""

from __future__ import annotations

import click
import msgspec

hostnames_option = click.option(
    "--hostnames", is_flag=True, help="Keep the names of hosts and users; else: client, server, here, user."
)


def print_json(value: object) -> None:
    """Print a value as JSON, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
