"""A kernel as it stands in the tree in which it was built: the image, and its modules, installed or not.

`make` leaves arch/x86/boot/bzImage, the modules beside their sources, and their names in modules.order;
`make modules_install INSTALL_MOD_PATH=FOLDER` puts the modules into FOLDER/lib/modules/VERSION. Those that were not
installed are laid out beneath hwrx's cache as links, as modules_install would: nothing is written into the tree.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from hwrx.errors import UsageError

IMAGE = "arch/x86/boot/bzImage"
LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")  # of the tree, which depmod reads


@dataclass(frozen=True)
class Build:
    """A built kernel: its version, its image, and the folder that has lib/modules/`version`."""

    version: str
    image: Path
    base: Path


def find_build(tree: Path, kernels: Path) -> Build:
    """Return the kernel that was built in a tree.

    :param tree: an absolute path.
    :param kernels: the folder of the cache in which modules are laid out that were not installed.
    :raises UsageError: if nothing was built there, or it is for another architecture.
    """
    image = tree / IMAGE
    if not image.is_file():
        raise _without_image(tree)
    need_boot_image(image)
    version = image_version(image)
    if version is None:
        raise UsageError(f"{image} does not say its version", remedy="make bzImage modules, and try again")
    for base in (tree, *sorted(path for path in tree.iterdir() if path.is_dir())):
        if (base / "lib/modules" / version / "modules.order").is_file():
            return Build(version, image, base)
    return Build(version, image, _lay_out(tree, image, version, kernels))


def need_boot_image(image: Path) -> None:
    """See that QEMU can boot a file as a kernel of x86-64.

    :raises UsageError: if it is not a bzImage, or one for 32 bits.
    """
    head = _header(image)
    # Documentation/arch/x86/boot.rst: `HdrS`, and bit 0 of xloadflags (protocol 2.12), "has a 64-bit entry point"
    if head[0x202:0x206] != b"HdrS":
        raise UsageError(
            f"{image} is not a boot image of x86 (a bzImage): an uncompressed vmlinux, or of another architecture",
            remedy=f"the guests here are x86-64: give a vmlinuz, or a tree with {IMAGE}",
        )
    if not struct.unpack_from("<H", head, 0x236)[0] & 1:
        raise UsageError(
            f"{image} is a kernel for 32 bits, and hwrx's guests run the 64-bit programs of this machine",
            remedy="build one with CONFIG_64BIT=y",
        )


def image_version(image: Path) -> str | None:
    """Return the release that a bzImage says it is (`uname -r` of it), None if it says none."""
    head = _header(image)
    # kernel_version: where the text is, less the 512 bytes of the boot sector
    start = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    found = re.match(rb"[\w.+~-]{1,128}", head[start : start + 128])
    return found[0].decode() if found else None


def _header(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(1 << 16).ljust(0x400, b"\0")


def _without_image(tree: Path) -> UsageError:
    """Say why there is nothing to boot in a folder."""
    config = tree / ".config"
    head = config.read_text(encoding="utf-8", errors="replace")[:400] if config.is_file() else ""
    found = re.search(r"^# Linux/(\w+) ", head, re.MULTILINE)
    if found and found[1] not in ("x86", "x86_64"):
        return UsageError(
            f"{tree} is configured for {found[1]}, and hwrx's guests are x86-64", remedy="make ARCH=x86_64 …"
        )
    if config.is_file() or (tree / "Kconfig").is_file():
        return UsageError(f"no kernel was built in {tree}: there is no {IMAGE}", remedy="make bzImage modules")
    return UsageError(
        f"{tree} is not a tree in which a kernel was built: there is no {IMAGE}",
        remedy="the path of a vmlinuz, or of a tree after `make bzImage modules`",
    )


def _lay_out(tree: Path, image: Path, version: str, kernels: Path) -> Path:
    """Link a tree's modules into the cache as modules_install would; return the folder that has lib/modules."""
    listed = [tree / line for line in _listed(tree)]
    there = [path for path in listed if path.is_file()]
    stamps = [path.stat().st_mtime_ns for path in (image, tree / ".config", *there) if path.exists()]
    base = kernels / f"build-{hashlib.sha256(bytes(tree)).hexdigest()[:12]}"
    folder = base / "lib/modules" / version
    stamp, key = base / "stamp", f"{len(there)} {max(stamps)}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        return base
    shutil.rmtree(base, ignore_errors=True)
    (folder / "kernel").mkdir(parents=True)
    for path in there:
        link = folder / "kernel" / path.relative_to(tree)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    # of modules that were never built nothing is listed: depmod would complain of each
    names = "".join(f"kernel/{path.relative_to(tree)}\n" for path in there)
    (folder / "modules.order").write_text(names, encoding="utf-8")
    for name in LISTS[1:]:
        if (tree / name).is_file():
            shutil.copyfile(tree / name, folder / name)
    (folder / "modules.builtin").touch()
    (folder / "build").symlink_to(tree)
    stamp.write_text(key, encoding="utf-8")
    return base


def _listed(tree: Path) -> list[str]:
    """Return the modules that a tree's modules.order names, relative to it: as .o since Linux 6.2, before as .ko."""
    order = tree / "modules.order"
    if not order.is_file():
        return []
    lines = order.read_text(encoding="utf-8", errors="replace").split()
    names = [re.sub(r"\.k?o$", ".ko", line.removeprefix("kernel/").removeprefix("./")) for line in lines]
    return [name for name in names if ".." not in Path(name).parts and not name.startswith("/")]
