"""The lab's kernels: a distribution's kernel packages, unpacked into a cache folder and never installed.

Installing a kernel package would change what the user's machine boots. So the package is downloaded by apt, which
checks its signature, and unpacked beneath `$XDG_CACHE_HOME/hwrx/kernels`. A kernel that was fetched once is used until
another one is asked for: figures of two days can only be compared on one kernel. A kernel that the user has built is
booted from its tree (`hwrx.lab.build_tree`).
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.lab import build_tree

ARCHITECTURE = "amd64"
DEFAULT = "default"  # what linux-image-amd64 depends on
FLAVOURS = ("rt", "cloud")  # packages of their own beside the ordinary one
_FLAVOUR = re.compile(rf"-({'|'.join(FLAVOURS)})(?:-{ARCHITECTURE})?$")
_BESIDE = re.compile(r"-(dbg|unsigned)$")  # packages of the same kernel, to be debugged or without a signature

Progress = Callable[[str, str], None]


def quiet_boot(stage: str, text: str) -> None:
    """Take progress and say nothing."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot, and where its modules are: `base`/lib/modules/`version`."""

    version: str
    image: Path
    base: Path
    package: str = ""


def cache_folder() -> Path:
    """Return hwrx's cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwrx"


def find_kernel(wanted: str | None = None, progress: Progress = quiet_boot, *, update: bool = False) -> Kernel:
    """Return a kernel, downloaded if the cache has none, or, with `update`, if the distribution has a newer one.

    :param wanted: a version (`6.12`, `6.12-rt`, `6.1-cloud`, `6.1.0-56-amd64`), or the path of a vmlinuz or of a tree
        in which a kernel was built; None: the distribution's default.
    :raises UsageError: if it is not a version, or there is no kernel at the path.
    :raises MachineError: if the distribution has no such package, or it cannot be downloaded.
    """
    if wanted is not None and "/" in wanted:
        return _from_path(Path(wanted).expanduser())
    name = DEFAULT if wanted is None else wanted
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UsageError(f"'{name}' is no kernel version", remedy="for example: --kernel 6.12")
    kernels = cache_folder() / "kernels"
    with _locked(kernels):
        chosen = kernels / f"{name}.chosen"
        if chosen.is_symlink() and chosen.exists() and not update:
            return _load(chosen.resolve())
        package, version = resolve_release(wanted)
        folder = kernels / f"{package}_{version}"
        if not folder.exists():
            _fetch(package, folder, progress)
        temporary = chosen.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        temporary.rename(chosen)
        return _load(folder)


def cached_kernels() -> list[Kernel]:
    """Return the kernels of the cache, oldest version first."""
    kernels = cache_folder() / "kernels"
    folders = [path for path in kernels.glob("linux-image-*") if path.is_dir()] if kernels.is_dir() else []
    return [_load(folder) for folder in sorted(folders, key=_by_version)]


def kernel_choices() -> dict[str, list[str]]:
    """Return, for each cached package, what it is chosen for: versions that were asked for, and `default`."""
    chosen: dict[str, list[str]] = {}
    for link in sorted((cache_folder() / "kernels").glob("*.chosen")):
        chosen.setdefault(link.resolve().name, []).append(link.name.removesuffix(".chosen"))
    return chosen


def is_at_hand(wanted: str | None) -> bool:
    """Whether `find_kernel` returns this kernel without a download."""
    chosen = cache_folder() / "kernels" / f"{wanted or DEFAULT}.chosen"
    return (wanted is not None and "/" in wanted) or chosen.exists()


def packaged_kernels(flavour: str = "") -> list[str]:
    """Return the kernels that the distribution offers, each as `find_kernel` takes it, the oldest version first.

    :param flavour: "rt" or "cloud"; "" for the ordinary ones.
    """
    pattern = re.compile(rf"linux-image-(\d+\.\d+\.\d\S*-{ARCHITECTURE})")
    names = [found[1] for name in _apt_cache("pkgnames", "linux-image-").split() if (found := pattern.fullmatch(name))]
    return sorted((name for name in names if _flavour_of(name) == flavour), key=_numbers)


def _from_path(path: Path) -> Kernel:
    """Return the kernel of a vmlinuz, or of a folder: a tree in which one was built."""
    if not path.is_dir():
        return from_image(path)
    with _locked(cache_folder() / "kernels"):
        build = build_tree.find_build(path.absolute(), cache_folder() / "kernels")
        _index(build.base, build.version)
    return Kernel(build.version, build.image, build.base)


def from_image(image: Path) -> Kernel:
    """Return the kernel of a vmlinuz whose modules are in lib/modules beside it or above it."""
    image = image.absolute()
    if not image.is_file():
        raise UsageError(
            f"there is no kernel image {image}", remedy="the path of a vmlinuz, or of a tree with a built kernel"
        )
    for base in image.parents:
        for modules in sorted((base / "lib/modules").glob("*")):
            if modules.name in image.name or (modules / "vmlinuz").exists():
                build_tree.need_boot_image(image)
                _index(base, modules.name)
                return Kernel(modules.name, image, base)
    raise UsageError(f"{image} has no modules: no lib/modules/VERSION in any folder above it")


def resolve_release(wanted: str | None) -> tuple[str, str]:
    """Return package and package version for a kernel version, following the distribution's meta packages."""
    if wanted is None:
        candidates = [f"linux-image-{ARCHITECTURE}"]
    else:
        candidates = [f"linux-image-{wanted}-{ARCHITECTURE}", f"linux-image-{wanted}"]
    for attempt in range(2):
        for candidate in candidates:
            found = _follow(candidate)
            if found:
                return found
        if wanted is not None:
            flavour = _flavour_of(wanted)
            version = wanted.removesuffix(f"-{flavour}") if flavour else wanted
            names = _apt_cache("pkgnames", f"linux-image-{version}").split()
            exactly = re.compile(rf"linux-image-{re.escape(version)}(?!\d).*-{ARCHITECTURE}")
            names = [name for name in names if exactly.fullmatch(name) and _flavour_of(name) == flavour]
            if names:
                found = _follow(max(names, key=_numbers))
                if found:
                    return found
        if attempt == 0 and os.geteuid() == 0:
            # a fresh machine has no lists yet
            subprocess.run(["apt-get", "update", "-q"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    raise MachineError(
        f"the distribution has no kernel package for {wanted or 'its default kernel'} (looked for {candidates[0]})",
        remedy="apt-get update; then: apt-cache search linux-image; or a path: --kernel /path/to/vmlinuz, ~/linux",
    )


def _follow(package: str) -> tuple[str, str] | None:
    for _ in range(4):  # meta packages of meta packages, and no further
        record = _apt_cache("show", "--no-all-versions", package)
        fields = dict(re.findall(r"^(Version|Depends|Package): (.*)$", record, re.MULTILINE))
        if fields.get("Package") != package:  # apt-cache takes a name that it does not know for a pattern
            return None
        real = re.match(r"(linux-image-\d[^\s,]*)", fields.get("Depends", ""))
        if not real:
            return package, fields["Version"]
        package = real[1]
    return None


def _apt_cache(*arguments: str) -> str:
    done = subprocess.run(
        [tools.find_tool("apt-cache"), *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    return done.stdout


def _fetch(package: str, folder: Path, progress: Progress) -> None:
    progress("kernel", f"downloading {package}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        draft = Path(scratch)
        done = subprocess.run(
            ["apt-get", "download", "-q", package],
            cwd=draft,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        packages = list(draft.glob("*.deb"))
        if done.returncode or len(packages) != 1:
            last = "\n    ".join(done.stdout.strip().splitlines()[-5:])
            raise MachineError(f"cannot download {package}:\n    {last}", remedy="apt-get update, and try again")
        progress("kernel", f"unpacking {package}")
        unpacked = draft / "kernel"
        tools.run_tool("dpkg", "-x", str(packages[0]), str(unpacked))
        modules = sorted((unpacked / "lib/modules").glob("*")) or sorted((unpacked / "usr/lib/modules").glob("*"))
        if not modules:
            raise MachineError(f"{packages[0].name} holds no modules")
        if modules[0].parts[-4] == "usr":
            (unpacked / "lib").symlink_to("usr/lib")
        _index(unpacked, modules[0].name)
        unpacked.rename(folder)


def _load(folder: Path) -> Kernel:
    version = next(path.name for path in sorted((folder / "lib/modules").glob("*")))
    for image in (folder / "boot" / f"vmlinuz-{version}", folder / "lib/modules" / version / "vmlinuz"):
        if image.exists():
            return Kernel(version, image, folder, folder.name)
    raise MachineError(f"the cached kernel {folder} holds no image", remedy=f"rm -r {folder}")


def _index(base: Path, version: str) -> None:
    """Write modules.dep, which the package's own installation would have done."""
    if not (base / "lib/modules" / version / "modules.dep").exists():
        tools.run_tool("depmod", "-a", "-b", str(base), version)


def _flavour_of(name: str) -> str:
    """Return the flavour that a version or a package's name ends in; "" for the ordinary kernel."""
    if _BESIDE.search(name):
        return "beside"
    found = _FLAVOUR.search(name)
    return found[1] if found else ""


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def _by_version(folder: Path) -> tuple[int, ...]:
    return _numbers(folder.name)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpacked_image(image: Path) -> bytes | None:
    """Return the ELF kernel inside a bzImage, or None where there is none that QEMU could start itself.

    An emulated CPU takes three seconds to unpack its kernel, this one half a second. Where the payload is: the fields
    setup_sects, payload_offset and payload_length of the boot protocol (Documentation/x86/boot.rst). QEMU starts an ELF
    kernel by its PVH entry, which distributions' kernels have.
    """
    data = image.read_bytes()
    if data[0x202:0x206] == b"" or data[0x1FE:0x200] != b"\x55\xaa":
        return None
    start = ((data[0x1F1] or 4) + 1) * 512 + struct.unpack_from("<I", data, 0x248)[0]
    payload = data[start : start + struct.unpack_from("<I", data, 0x24C)[0]]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            kernel = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            kernel = zlib.decompressobj(31).decompress(payload)
        elif payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
            # the payload ends in four bytes of its unpacked size, which zstd does not expect
            kernel = subprocess.run(["zstd", "-dc"], input=payload[:-4], capture_output=True, check=True).stdout
        else:
            return None
    except (lzma.LZMAError, zlib.error, subprocess.CalledProcessError):
        return None
    has_pvh = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0" in kernel or b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0" in kernel
    return kernel if kernel.startswith(b"\x7fELF") and has_pvh else None


def is_bootable(kernel: Kernel) -> Path:
    """Return what QEMU should start: the unpacked kernel, kept in the cache, or the image as it is."""
    key = f"{kernel.image.stat().st_mtime_ns:x}-{kernel.image.stat().st_size:x}"
    path = cache_folder() / "kernels" / f"vmlinux-{kernel.version}-{key}"
    if path.exists():
        return path
    unpacked = unpacked_image(kernel.image)
    if unpacked is None:
        return kernel.image
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(unpacked)
    draft.rename(path)
    return path
