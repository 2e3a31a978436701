"""Every error that hwrx raises on purpose: a name, what happened, and what the user can do about it."""

from __future__ import annotations


class HwrxError(Exception):
    """What went wrong in words, and in `remedy` what to type or change.

    The command line prints both and exits with `exit_code`; nothing else of an HwrxError reaches the user.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the message, followed by the remedy where there is one."""
        message = super().__str__()
        return f"{message}\n  remedy: {self.remedy}" if self.remedy else message


class UsageError(HwrxError):
    """The command, a file or an option asks for something that does not exist or cannot be."""

    exit_code = 2


class MachineError(HwrxError):
    """This machine lacks something: a device, a module, a privilege, a tool, a limit that is high enough."""

    exit_code = 3


class PathError(HwrxError):
    """A delivery path failed while it was set up or used: names the call, the object and the errno or status."""


class PeerError(HwrxError):
    """The other end of a control pipe died, fell silent, or spoke something else than hwrx."""


class SilenceError(PeerError):
    """The other end of a control pipe is there, but did not answer within the limit."""


class TrialError(HwrxError):
    """A trial failed; names it. The run goes on or ends as its experiment says."""


class GuestError(HwrxError):
    """A virtual machine did not come up, or stopped answering; carries the last lines of its log."""


class StandstillError(GuestError):
    """A virtual machine is there and does nothing any more, as an emulated one does now and then."""


class UnavailableError(HwrxError):
    """A figure that a run does not have: says why, and what has it."""


class StoreError(HwrxError):
    """A run directory cannot be written or read."""
