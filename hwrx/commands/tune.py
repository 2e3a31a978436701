"""`hwrx tune`: what spoils a measurement on this machine, off and on again."""

from __future__ import annotations

import click
import msgspec

from hwrx.errors import UsageError
from hwrx.host import strict_json
from hwrx.machine import tune as settings


@click.command()
@click.option("--show", "show", is_flag=True, help="Say what spoils a measurement here (the default).")
@click.option("--apply", "apply_", is_flag=True, help="Switch off what can be, until --restore or the next boot.")
@click.option("--restore", is_flag=True, help="Set everything back as it was before --apply.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def tune(show: bool, apply_: bool, restore: bool, as_json: bool) -> None:
    """Quieten this machine for a measurement: clock, sleep states, sibling threads, watchdog.

    \b
    Examples:
      hwrx tune
      sudo hwrx tune --apply && hwrx compare experiment.toml; sudo hwrx tune --restore
    """
    if show + apply_ + restore > 1:
        raise UsageError("--show, --apply and --restore exclude each other")
    if apply_ or restore:
        changed = settings.apply_tuning() if apply_ else settings.restore_tuning()
        click.echo("\n".join(changed) or "nothing was to change")
        return
    found = settings.find_noise()
    if as_json:
        click.echo(strict_json.to_json(msgspec.to_builtins(found), indent=1))
        return
    for finding in found:
        click.echo(f"{finding.name}: {finding.state}\n  {finding.effect}\n  {finding.remedy}")
    if not found:
        click.echo("nothing that is known to spoil a measurement")
