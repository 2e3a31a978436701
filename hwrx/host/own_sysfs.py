"""A sysfs that shows the devices of the network namespace that one is in."""

from __future__ import annotations

from hwrx.host import tools


def in_own_sysfs(command: str) -> str:
    """Run a shell command in a sysfs that shows this network namespace's devices, as its working directory.

    The one on /sys may show those of another namespace, and a device of the same name among them. The mount is the
    shell's own and goes with it.

    :return: what the command printed
    :raises MachineError: if it fails
    """
    return tools.run_tool(*own_sysfs_command(command))


def own_sysfs_command(command: str) -> tuple[str, ...]:
    """Return the words that run such a command, for those that undo what was done."""
    return ("unshare", "--mount", "sh", "-c", f"mount -t sysfs sysfs /mnt && cd /mnt && {command}")
