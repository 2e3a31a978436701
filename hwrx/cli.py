"""The command `hwrx`.

Each subcommand lives in a module of `hwrx.commands` and is imported only when it is called: `hwrx agent` starts in an
emulated guest, where importing Matplotlib would take longer than many a trial.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys

import click

from hwrx.errors import HwrxError
from hwrx.host import streams, tools
from hwrx.host.interruption import INTERRUPTED, Ending
from hwrx.host.shortage import shortage_remedy
from hwrx.version import __version__

# name -> (module, attribute, one line for --help); in the order of the help
COMMANDS: dict[str, tuple[str, str, str]] = {
    "compare": ("hwrx.commands.compare", "compare", "run an experiment, or the one that the options describe"),
    "lab": ("hwrx.commands.lab", "lab", "virtual machines and namespaces that have the hardware"),
    "bench": ("hwrx.commands.bench", "bench", "hosts by name: what they can do, and hwrx on them"),
    "report": ("hwrx.commands.report", "report", "table, HTML and figures of a run"),
    "artifact": ("hwrx.commands.artifact", "artifact", "pack a run for somebody who is to repeat it"),
    "rerun": ("hwrx.commands.artifact", "rerun", "run a run's experiment again, and hold the two together"),
    "diff": ("hwrx.commands.diff", "diff", "what changed from some runs to others, beyond chance"),
    "campaign": ("hwrx.commands.campaign", "campaign", "an experiment over kernels, boot words, hosts and settings"),
    "matrix": ("hwrx.commands.matrix", "matrix", "an experiment over kernels, and what moved from one to the next"),
    "bisect": ("hwrx.commands.bisect", "bisect", "the first kernel of a list, or commit of a tree, that is bad"),
    "track": ("hwrx.commands.track", "track", "a history of runs, and where a figure changed"),
    "devices": ("hwrx.commands.machine", "devices", "verbs devices, their ports, GIDs and limits"),
    "doctor": ("hwrx.commands.machine", "doctor", "what this machine can do, and how to mend what it cannot"),
    "tune": ("hwrx.commands.tune", "tune", "what spoils a measurement here: switch it off, and on again"),
    "rxe": ("hwrx.commands.machine", "rxe", "put a SoftRoCE device on a netdev, or take it away"),
    "stages": ("hwrx.commands.trace", "stages", "what a message passes on its way, and what this kernel allows to see"),
    "lookup": ("hwrx.commands.lookup", "lookup", "whose packet is it: the kernel's tables, and its hash step by step"),
    "drops": ("hwrx.commands.drops", "drops", "where packets die: each place provoked in turn, its balance closed"),
    "hooks": ("hwrx.commands.hooks", "hooks", "where a packet can be looked at or changed, and what each hook costs"),
    "memory": ("hwrx.commands.memory", "memory", "which pages the kernel moves and pages out, and what holds them"),
    "claims": (
        "hwrx.commands.claims",
        "claims",
        "what textbooks and articles say of packet reception, put to the test",
    ),
    "flood": ("hwrx.commands.flood", "flood", "100,000 at once, or more than is taken: polls, CPUs, queues, losses"),
    "nic": ("hwrx.commands.nic", "nic", "NICs that hwrx drives itself: list, bind, unbind, dump, recv"),
    "roce": ("hwrx.commands.roce", "roce", "packets of RoCEv2 decoded, and a peer of our own: listen, send, ping"),
    "drill": ("hwrx.commands.drill", "drill", "rules of RDMA's reliable transport, each put to a queue pair"),
    "export": ("hwrx.commands.trace", "export", "the timelines of a traced run, for Perfetto's viewer"),
    "walk": ("hwrx.commands.walk", "walk", "the journey of one message: stages, copies, addresses"),
    "anatomy": ("hwrx.commands.anatomy", "anatomy", "each instruction of a message, by layer and by function"),
    "agent": ("hwrx.commands.agent", "agent", "one endpoint, driven over standard input and output"),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and lines, and imports a command when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hwrx")
def cli() -> None:
    """Measure where a received message spends its time, and how often the CPU copies it.

    \b
    Example:
      hwrx compare lab/experiments/first.toml
      hwrx compare --paths udp,tcp --size 64 --here
    """


def main(args: list[str] | None = None) -> int:
    """Run the command, and return its exit code.

    HwrxErrors become words and a code; Ctrl-C, SIGTERM and SIGHUP clean up, and become 130.
    """
    streams.settle_streams()
    tools.widen_path()
    # Figures are drawn into files, never into a window. A notebook leaves its own backend to those that it starts, and
    # importing Matplotlib fails if that one is not installed here
    os.environ.pop("MPLBACKEND", None)
    with contextlib.suppress(OSError, ValueError):  # a standard error without a descriptor, as some test tools make it
        faulthandler.enable()  # drivers and libraries in C are loaded: where a crash was must be seen
    with Ending() as ending:
        code = _run(args, ending)
    streams.drop_refused(sys.stderr)
    return code


def _run(args: list[str] | None, ending: Ending) -> int:
    try:
        code = cli.main(args=args, prog_name="hwrx", standalone_mode=False) or 0
        sys.stdout.flush()  # here, where what the reader or the disk says to it can be told
        return code
    except (click.exceptions.Abort, KeyboardInterrupt):
        ending.heard()
        streams.say_last("interrupted")
        return INTERRUPTED
    except ImportError:  # a library in C that was interrupted while it was imported says so (NumPy)
        if not ending.lost():
            raise
        streams.say_last("interrupted")
        return INTERRUPTED
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except HwrxError as error:
        streams.say_last(f"hwrx: {error}")
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output went away (`| head`): not an error of ours, and nothing more can be said to it
        streams.drop_output(sys.stdout)
        return 141
    except OSError as error:
        streams.drop_output(sys.stdout)
        remedy = shortage_remedy(error.errno)
        streams.say_last(f"hwrx: {streams.error_words(error)}" + (f"\n  remedy: {remedy}" if remedy else ""))
        return 1
