"""hwrx: how packets reach programs, and what each stage and copy on the way costs.

    import hwrx

    run = hwrx.compare(paths=["udp", "tcp"], sizes=[64], topology="netns")
    print(run["tcp", 64].p50, run["tcp", 64].unit, run.ratio("tcp", to="udp", size=64).value)

Errors are `hwrx.errors.HwrxError`s; nothing is printed, and nothing ends the program.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwrx.report.holding import Baseline as Baseline
    from hwrx.report.reported import ReportedRun
    from hwrx.scripting.lab import Lab as Lab
    from hwrx.scripting.progress import Listener

from hwrx.version import __version__ as __version__


def load(path: str | os.PathLike[str]) -> ReportedRun:
    """Open a run directory: `run["udp", 64].p50`, `run.samples`, `run.trials`, `run.summary()`, `run.figure("cdf")`.

    :param path: the directory, for example runs/latest; a partial run, and one of an older version, can be read, too
    :return: the run, its files checked; what is damaged of it is in `run.damage`, and nothing is written to it
    :raises StoreError: that says what is wrong with one that cannot be read
    """
    # an endpoint in an emulated guest imports hwrx and needs no Arrow
    from hwrx.report.reported import ReportedRun

    return ReportedRun.open(os.fspath(path))


def compare(
    experiment: str | os.PathLike[str] | None = None,
    *,
    runs: str | os.PathLike[str] = "runs",
    progress: Listener | None = None,
    log: str | os.PathLike[str] | None = None,
    here: bool = False,
    devices: tuple[str, ...] | list[str] = (),
    peer: str | None = None,
    peer_device: str | None = None,
    peer_address: str | None = None,
    address: str | None = None,
    hostnames: bool = False,
    **options: object,
) -> ReportedRun:
    """Compare delivery paths as `hwrx compare` does, and return the run. It is that command's code.

    :param experiment: an experiment file; None: what the keywords describe. Keywords change what the file says
    :param runs: the folder that the run's directory is made in
    :param progress: called with a `hwrx.scripting.progress.Step` for each thing that is done; it may come from another
        thread, and what it raises ends the run
    :param log: a file that gets all that a guest prints
    :param here: this machine's own kernel and devices, no virtual machine
    :param devices: verbs devices of client and server on this machine
    :param peer: where the other end runs: "local", "netns:NAME", "ssh:HOST", or a command with {agent}
    :param peer_device, peer_address, address: the peer's verbs device, its address, the client's own
    :param hostnames: whether what is shown of the run keeps the names of hosts and users
    :param options: any field of an experiment (`paths`, `sizes`, `patterns`, `waits`, `topology`, `clock`, `kernel`,
        `boot`, `repeats`, `seed`, `trace`, `anatomy`, `load`, `until`, `sweep`, …) and of a setting (`messages`,
        `window`, `netem`, …), with the names and values of an experiment file
    :return: the run, as `hwrx.load` opens it
    :raises UsageError: if an option is none, or asks for what cannot be
    :raises MachineError: if this machine lacks something
    :raises GuestError: if a guest does not come up
    :raises TrialError: if trials failed; the run is there, and named
    """
    # as above: what measures has no business in a guest
    from hwrx.scripting.lab import compare_paths

    return compare_paths(
        experiment,
        runs=runs,
        progress=progress,
        log=log,
        here=here,
        devices=devices,
        peer=peer,
        peer_device=peer_device,
        peer_address=peer_address,
        address=address,
        hostnames=hostnames,
        options=options,
    )


def __getattr__(name: str) -> object:
    # `hwrx.Lab` and `hwrx.Baseline` are classes: they are imported when somebody asks for them, as above
    if name == "Lab":
        # a lab starts virtual machines
        from hwrx.scripting.lab import Lab

        return Lab
    if name == "Baseline":
        # diffs need SciPy
        from hwrx.report.holding import Baseline

        return Baseline
    raise AttributeError(f"module 'hwrx' has no attribute '{name}'")
