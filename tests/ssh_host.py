"""A real ssh server for tests: on the loopback device, on a port of its own, with keys and a client's configuration.

It is dropbear: Debian has its program without a service, so that installing it makes nothing listen. It reads the keys
that may log in from the user's home, which in its own mount namespace is a folder of the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = "dropbear"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Start the server, and yield a configuration for `ssh -F` with the hosts `box`, `stranger` (no key), `closed`."""
    for name in ("user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    made = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", folder / "host"], check=True, capture_output=True, text=True
    )
    port = free_port()
    (key,) = re.findall(r"^ssh-ed25519 \S+", made.stdout, re.MULTILINE)
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key}\n")
    home = folder / "home"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    (home / ".ssh/authorized_keys").write_text((folder / "user.pub").read_text())
    (home / ".ssh/authorized_keys").chmod(0o600)
    (folder / "passwd").write_text(f"root:x:0:0::{home}:/bin/sh\n")
    own = f"HostName 127.0.0.1\nUser root\nUserKnownHostsFile {folder}/known\nIdentitiesOnly yes\nBatchMode yes\n"
    (folder / "ssh_config").write_text(
        f"Host box\nPort {port}\n{own}IdentityFile {folder}/user\n"
        f"Host stranger\nPort {port}\n{own}IdentityFile {folder}/stranger\n"
        f"Host closed\nPort {free_port()}\n{own}IdentityFile {folder}/user\n"
    )
    script = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
    command = [SSHD, "-F", "-E", "-s", "-r", str(folder / "host"), "-p", f"127.0.0.1:{port}", "-P", f"{folder}/pid"]
    server = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(folder / "passwd"), *command],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield folder / "ssh_config"
    finally:
        server.terminate()
        server.wait(timeout=60)
