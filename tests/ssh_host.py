"""A real ssh server for tests: on the loopback device, on a port of its own, with keys and a client's configuration."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = "/usr/sbin/sshd"
PRIVILEGES = Path("/run/sshd")  # sshd wants it, and Debian's service makes it


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Start sshd, and yield a configuration for `ssh -F` with the hosts `box`, `stranger` (no key) and `closed`."""
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    known = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )
    own = f"HostName 127.0.0.1\nUserKnownHostsFile {folder}/known\nIdentitiesOnly yes\nBatchMode yes\n"
    (folder / "ssh_config").write_text(
        f"Host box\nPort {port}\n{own}IdentityFile {folder}/user\n"
        f"Host stranger\nPort {port}\n{own}IdentityFile {folder}/stranger\n"
        f"Host closed\nPort {free_port()}\n{own}IdentityFile {folder}/user\n"
    )
    made = not PRIVILEGES.exists()
    PRIVILEGES.mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "sshd has ended"
            time.sleep(0.1)
        yield folder / "ssh_config"
    finally:
        server.terminate()
        server.wait(timeout=60)
        if made:
            with contextlib.suppress(OSError):
                PRIVILEGES.rmdir()
