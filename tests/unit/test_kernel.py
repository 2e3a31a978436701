"""The kernel cache: what is chosen, fetched once, and said when it cannot be.

apt is a script here, because a missing package, a broken download or a second version cannot be had on demand.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hwrx.errors import MachineError, UsageError
from hwrx.lab import kernel

Apt = Callable[..., Path]
META = "Package: {name}\nVersion: {version}\nDepends: {real} (= {version})\n"
REAL = "Package: {name}\nVersion: {version}\nDepends: kmod, linux-base\n"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """Put an apt on the PATH that knows these packages; returns the log of what it was asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = tmp_path / "asked"

    def script(name: str, body: str) -> None:
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{log}\n{body}')
        (tools / name).chmod(0o755)

    def make(records: dict[str, str], download: str = "make_package") -> Path:
        shown = tmp_path / "records"
        shown.mkdir(exist_ok=True)
        for old in shown.iterdir():
            old.unlink()
        for name, record in records.items():
            (shown / name).write_text(record)
        script(
            "apt-cache",
            f'if [ $1 = show ]; then cat {shown}/$3 2>/dev/null; else ls {shown} | grep "^$2"; fi\nexit 0\n',
        )
        control = r"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
        package = f"""
            mkdir -p d/DEBIAN d/boot d/lib/modules/$v/kernel
            printf '{control}' >d/DEBIAN/control
            echo image >d/boot/vmlinuz-$v
            touch d/lib/modules/$v/modules.order d/lib/modules/$v/modules.builtin
            dpkg-deb -b d x.deb >/dev/null && rm -r d
        """
        body = package if download == "make_package" else download
        script("apt-get", f"[ $1 = download ] || exit 0\nv=${{3#linux-image-}}\n{body}\n")
        return log

    return make


DISTRIBUTION = {
    name: META.format(name=name, version=version, real=real) if real else REAL.format(name=name, version=version)
    for name, version, real in (
        ("linux-image-amd64", "6.1.9-1", "linux-image-6.1.0-9-amd64"),
        ("linux-image-6.1.0-9-amd64", "6.1.9-1", ""),
        ("linux-image-6.1.0-10-amd64", "6.1.10-1", ""),
        ("linux-image-6.1.0-10-cloud-amd64", "6.1.10-1", ""),
        ("linux-image-6.1.0-10-rt-amd64", "6.1.10-1", ""),
        ("linux-image-6.1.0-10-amd64-dbg", "6.1.10-1", ""),
        ("linux-image-6.1.0-10-amd64-unsigned", "6.1.10-1", ""),
        ("linux-image-6.12-rt-amd64", "6.12.3-1", "linux-image-6.12.3-rt-amd64"),
        ("linux-image-6.12.3-rt-amd64", "6.12.3-1", ""),
        ("linux-image-6.12-amd64", "6.12.3-1", "linux-image-6.12.3-amd64"),
        ("linux-image-6.12.3-amd64", "6.12.3-1", ""),
    )
}


@pytest.mark.parametrize(
    ("wanted", "package"),
    [
        (None, "linux-image-6.1.0-9-amd64"),
        ("6.12", "linux-image-6.12.3-amd64"),
        ("6.1", "linux-image-6.1.0-10-amd64"),  # the newest: 10 is more than 9; neither 6.12 nor the cloud's
        ("6.1.0-9-amd64", "linux-image-6.1.0-9-amd64"),
        ("6.1.0-9", "linux-image-6.1.0-9-amd64"),
        ("6.1-cloud", "linux-image-6.1.0-10-cloud-amd64"),
        ("6.1-rt", "linux-image-6.1.0-10-rt-amd64"),
        ("6.12-rt", "linux-image-6.12.3-rt-amd64"),
        ("6.1.0-10-rt-amd64", "linux-image-6.1.0-10-rt-amd64"),
    ],
)
def test_a_version_finds_its_package_through_meta_packages(apt: Apt, wanted: str | None, package: str) -> None:
    apt(DISTRIBUTION)
    assert kernel.resolve_release(wanted)[0] == package


def test_all_packaged_kernels_are_listed_oldest_first_each_flavour_by_itself(apt: Apt) -> None:
    apt(DISTRIBUTION)
    assert kernel.packaged_kernels() == ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.3-amd64"]
    assert kernel.packaged_kernels("rt") == ["6.1.0-10-rt-amd64", "6.12.3-rt-amd64"]
    assert kernel.packaged_kernels("cloud") == ["6.1.0-10-cloud-amd64"]


def test_a_kernel_is_fetched_once_and_stays_the_one_until_an_update_is_asked_for(apt: Apt) -> None:
    log = apt(DISTRIBUTION)
    said: list[str] = []
    first = kernel.find_kernel(None, lambda stage, text: said.append(text))
    assert first.version == "6.1.0-9-amd64"
    assert first.image.read_text() == "image\n"
    assert (first.base / "lib/modules/6.1.0-9-amd64/modules.dep").exists()
    assert any("downloading" in text for text in said)
    asked = log.read_text()

    newer = {**DISTRIBUTION, "linux-image-amd64": DISTRIBUTION["linux-image-amd64"].replace("6.1.0-9", "6.1.0-10")}
    apt(newer)
    assert kernel.find_kernel(None) == first
    assert log.read_text() == asked
    assert kernel.find_kernel(None, update=True).version == "6.1.0-10-amd64"
    assert [found.version for found in kernel.cached_kernels()] == ["6.1.0-9-amd64", "6.1.0-10-amd64"]
    assert kernel.kernel_choices() == {"linux-image-6.1.0-10-amd64_6.1.10-1": ["default"]}


def test_a_package_that_does_not_exist_is_named(apt: Apt) -> None:
    apt(DISTRIBUTION)
    with pytest.raises(MachineError, match=r"no kernel package for 5\.4") as caught:
        kernel.find_kernel("5.4")
    assert "apt-get update" in caught.value.remedy


def test_a_download_that_fails_says_what_apt_said_and_leaves_nothing(apt: Apt) -> None:
    apt(DISTRIBUTION, download="echo 'E: 404 Not Found'; exit 100")
    with pytest.raises(MachineError, match="404 Not Found"):
        kernel.find_kernel(None)
    assert kernel.cached_kernels() == []
    assert [path.name for path in (kernel.cache_folder() / "kernels").iterdir()] == [".lock"]


@pytest.mark.parametrize("wanted", ["6.1; rm -rf /", "$(id)", "", "6 .1"])
def test_what_is_no_version_reaches_no_command(apt: Apt, wanted: str) -> None:
    log = apt(DISTRIBUTION)
    with pytest.raises(UsageError):
        kernel.find_kernel(wanted)
    assert not log.exists()


def test_an_image_without_modules_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz-9.9"
    image.write_text("image")
    with pytest.raises(UsageError, match="has no modules"):
        kernel.find_kernel(str(image))
    with pytest.raises(UsageError, match="there is no kernel image"):
        kernel.find_kernel(str(tmp_path / "none"))


def boot_image(path: Path, payload: bytes) -> Path:
    """A bzImage's header as the boot protocol has it, and the payload."""
    sectors = 3
    head = bytearray((sectors + 1) * 512)
    head[0x1F1] = sectors
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    path.write_bytes(bytes(head) + bytes(64) + payload + b"the end")
    return path


PVH = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0"


def test_the_kernel_is_found_in_its_image_whatever_packed_it(tmp_path: Path) -> None:
    inner = b"\x7fELF" + bytes(1000) + PVH + b"code"
    packed = {
        "xz": lzma.compress(inner),
        "gzip": subprocess.run(["gzip", "-c"], input=inner, capture_output=True, check=True).stdout,
        "zstd": subprocess.run(["zstd", "-c"], input=inner, capture_output=True, check=True).stdout
        + len(inner).to_bytes(4, "little"),
    }
    for name, payload in packed.items():
        assert kernel.unpacked_image(boot_image(tmp_path / name, payload)) == inner, name


@pytest.mark.parametrize(
    "payload",
    [
        lzma.compress(b"\x7fELF without an entry that QEMU knows"),
        lzma.compress(b"no ELF" + PVH),
        b"\xfd7zXZ\0broken",
        b"?",
    ],
    ids=["no PVH entry", "no ELF", "broken", "unknown packing"],
)
def test_an_image_that_cannot_be_unpacked_is_booted_as_it_is(tmp_path: Path, payload: bytes) -> None:
    assert kernel.unpacked_image(boot_image(tmp_path / "image", payload)) is None


def test_what_is_no_boot_image_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(2000))
    assert kernel.unpacked_image(tmp_path / "image") is None
