"""The first program of a guest: an archive with a static busybox, the modules to reach the host's files, and a script.

The distribution's kernel has 9p and overlayfs as modules, so it needs an archive; its own would be looking for disks.
The guest then lives on the host's file system, read-only beneath a layer in memory: everything is at the same path,
everything can be written, and nothing that is written reaches the host (but for the folders that are named).

There is no udev, no systemd and no login: they took 25 of the 30 s that an emulated guest needed to come up. The 9p
mount caches (`cache=loose`), which the host's files allow as long as nobody edits them during a run: Python starts
ten times faster than through an uncached one.
"""

from __future__ import annotations

import io
import lzma
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hwrx.errors import MachineError

# virtio_console carries the control port, the rest carries the host's files
MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")
APPLETS = ("sh", "mount", "mkdir", "insmod", "ln", "switch_root", "echo", "ip", "poweroff", "sleep")
ROOT_TAG = "hwrx.root"
MODULES_TAG = "hwrx.modules"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOTED = "hwrx: the guest is up"  # what the accelerator's probe waits for
STUCK = "hwrx: the guest cannot go on"

# The numbers: newc archives are read by Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
_ALIGN = 4


class Archive:
    """A cpio archive in the `newc` format, as the kernel unpacks it."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0

    def folder(self, name: str) -> None:
        """Add a folder."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._entry(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        """Add a file."""
        self._entry(name, stat.S_IFREG | mode, content)

    def finish(self) -> bytes:
        """Return the archive."""
        self._entry("TRAILER!!!", 0, b"")
        return self._out.getvalue()

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        self._padded(encoded)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(bytes(-self._out.tell() % _ALIGN))


def find_busybox() -> Path:
    """Return a busybox that needs no library; MachineError where there is none."""
    for name in ("busybox-static", "busybox.static", "busybox"):
        found = shutil.which(name)
        if found and _is_static(Path(found)):
            return Path(found)
    raise MachineError("there is no static busybox", remedy="apt-get install busybox-static")


def _is_static(program: Path) -> bool:
    # a program that asks for no interpreter (PT_INTERP, type 3) loads no library; ELF-64 program headers, gABI chapter
    # 5
    head = program.read_bytes()[:4096]
    if head[:5] != b"\x7fELF\x02":
        return False
    table = int.from_bytes(head[32:40], "little")
    size, count = int.from_bytes(head[54:56], "little"), int.from_bytes(head[56:58], "little")
    return all(int.from_bytes(head[table + n * size :][:4], "little") != 3 for n in range(count))


def module_files(base: Path, version: str, names: Iterable[str] = MODULES) -> list[Path]:
    """Return the files of these modules and of all that they need, in the order of loading.

    `base` is the folder that has lib/modules/`version`. A module that is built in has no file.
    """
    files: dict[Path, None] = {}
    for name in names:
        done = subprocess.run(
            ["modprobe", "-d", base, "-S", version, "--show-depends", name],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise MachineError(f"kernel {version} has no module {name}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            verb, _, rest = line.partition(" ")
            if verb == "insmod":
                files[Path(rest.split()[0])] = None
    return list(files)


def unpacked_modules(module: Path) -> bytes:
    """Return the module as the kernel wants it: busybox's insmod does not decompress."""
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


def build_initramfs(
    base: Path,
    version: str,
    command: Sequence[str],
    *,
    writable: Mapping[str, Path] | None = None,
    environment: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
    own_share: bool = False,
) -> bytes:
    """Return the archive of a guest that runs `command` on the host's files and powers off.

    `modules` are loaded while the command starts; whoever needs one still has to see to it.
    `own_share`: whether the kernel's modules come as a 9p share of their own, not with all the host's files.
    `writable` maps the tags of further 9p shares to the folders, on both sides, that the guest may write to.
    """
    archive = _with_busybox()
    archive.folder("modules")
    loads = []
    for module in module_files(base, version):
        name = f"modules/{module.name.partition('.')[0]}.ko"
        archive.file(name, unpacked_modules(module), 0o644)
        loads.append(f"insmod /{name} || stuck 'loading {module.name}'")
    variables = {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        **(environment or {}),
    }
    first = " ".join(["/usr/bin/env", "-i", *(shlex.quote(f"{key}={value}") for key, value in variables.items())])
    last = _LAST.format(modules=shlex.join(modules), command=shlex.join(command))
    script = _SCRIPT.format(
        stuck=STUCK,
        modules="\n".join(loads),
        tag=ROOT_TAG,
        shares="\n".join(
            f"mkdir -p /root/{shlex.quote(str(path).lstrip('/'))} && "
            f"mount -t 9p -o {_NINE_P},cache=none {tag} /root{shlex.quote(str(path))} || stuck sharing"
            for tag, path in (writable or {}).items()
        ),
        version=version,
        nine_p=_NINE_P,
        kernel_modules=f"-t 9p -o ro,{_NINE_P},cache=loose {MODULES_TAG}"
        if own_share
        else f"-o bind /host{shlex.quote(str(base / 'lib/modules' / version))}",
        init=f"{first} /bin/sh -c {shlex.quote(last)}",
    )
    archive.file("init", script.encode())
    return archive.finish()


def in_memory(archive: bytes) -> int:
    """Return a descriptor of a file without a name that holds the archive; a child reads it as /proc/self/fd/N."""
    fd = os.memfd_create("initramfs", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(archive)
    return fd


def build_probe() -> bytes:
    """Return the archive of a guest that says that it is up, and powers off."""
    archive = _with_busybox()
    archive.file("init", f"#!/bin/sh\necho '{BOOTED}'\npoweroff -f\n".encode())
    return archive.finish()


def _with_busybox() -> Archive:
    archive = Archive()
    for folder in ("bin", "dev", "proc", "sys", "host", "layer", "root"):
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.file("bin/busybox", find_busybox().read_bytes())
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    return archive


_NINE_P = "trans=virtio,version=9p2000.L,access=any,msize=512000"

# /proc, /sys and the rest are mounted where they will be, before the root is switched
_SCRIPT = """#!/bin/sh
stuck() {{
    echo "{stuck}: $1"
    poweroff -f
}}
{modules}
mount -t 9p -o ro,{nine_p},cache=loose {tag} /host || stuck "mounting the host's files"
mount -t tmpfs -o mode=755 layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work,xino=off root /root ||
    stuck "laying a writable layer over the host's files"
mount -t proc -o nosuid,noexec,nodev proc /root/proc
mount -t sysfs -o nosuid,noexec,nodev sys /root/sys
mount -t devtmpfs -o mode=755,nosuid dev /root/dev
mkdir -p /root/dev/shm /root/dev/pts /root/dev/hugepages
mount -t tmpfs -o mode=1777,nosuid,nodev shm /root/dev/shm
mount -t devpts -o mode=620,noexec,nosuid,gid=5 devpts /root/dev/pts
mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
mkdir -p /root/run/lock /root/run/netns
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t hugetlbfs hugetlbfs /root/dev/hugepages
ln -s /proc/self/fd /root/dev/fd
ln -s /proc/self/fd/0 /root/dev/stdin
ln -s /proc/self/fd/1 /root/dev/stdout
ln -s /proc/self/fd/2 /root/dev/stderr
mkdir -p /root/lib/modules/{version}
mount {kernel_modules} /root/lib/modules/{version}
{shares}
ip link set lo up
echo hwrx > /root/proc/sys/kernel/hostname
exec switch_root /root {init}
"""
# the last command of process 1; what the command leaves behind is reaped by the shell
_LAST = (
    '{command}; echo "hwrx: the guest\'s command ended with exit code $?"; '
    "sync; poweroff -f || echo o > /proc/sysrq-trigger"
)
