"""Kernels of the user's own: what a tree must have, and what is said if it does not."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hwrx.errors import MachineError, UsageError
from hwrx.lab import build_tree, kernel, kernel_needs

VERSION = "6.99.0-mine"
EVERYTHING = {
    **dict.fromkeys(kernel_needs.BUILT_IN, "y"),
    **dict.fromkeys(kernel_needs.OPTIONS.values(), "y"),
}


@pytest.fixture(autouse=True)
def a_cache_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_tree(
    tree: Path, options: dict[str, str], *, bits: int = 1, arch: str = "x86", image: bool = True, version: str = VERSION
) -> Path:
    """A tree as `make` leaves it: .config, and a bzImage with the header of the boot protocol."""
    tree.mkdir(exist_ok=True)
    lines = [f"#\n# Automatically generated file; DO NOT EDIT.\n# Linux/{arch} 6.99.0 Kernel Configuration\n#"]
    lines += [f"CONFIG_{name}={value}" for name, value in options.items()]
    (tree / ".config").write_text("\n".join(lines) + "\n")
    if image:
        head = bytearray(0x600)
        head[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
        struct.pack_into("<H", head, 0x20E, 0x300)
        struct.pack_into("<H", head, 0x236, bits)
        head[0x500 : 0x500 + len(version) + 12] = f"{version} (me@here)\0".encode()
        file = tree / build_tree.IMAGE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(head))
    return tree


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module that depmod can read: an ELF object without a symbol."""
    subprocess.run(["as", "-o", tmp_path / "m.ko", "-"], input=b"", check=True)
    return tmp_path / "m.ko"


@pytest.mark.parametrize("ending", ["o", "ko"])
def test_modules_that_were_not_installed_are_found_in_the_tree(tmp_path: Path, module: Path, ending: str) -> None:
    tree = make_tree(tmp_path / "linux", {**EVERYTHING, "9P_FS": "m", "OVERLAY_FS": "m"})
    for name in ("fs/9p/9p", "fs/overlayfs/overlay"):
        (tree / name).parent.mkdir(parents=True)
        shutil.copy(module, tree / f"{name}.ko")
    (tree / "modules.order").write_text(f"fs/9p/9p.{ending}\nfs/overlayfs/overlay.{ending}\nnot/built/gone.{ending}\n")
    before = sorted(tree.rglob("*"))
    found = kernel.find_kernel(str(tree))
    assert (found.version, found.image) == (VERSION, tree / build_tree.IMAGE)
    index = (found.base / "lib/modules" / VERSION / "modules.dep").read_text()
    assert "kernel/fs/9p/9p.ko:" in index and "overlay.ko" in index and "gone" not in index
    assert kernel_needs.missing_modules(found, ["9p", "overlay", "veth"]) == []
    kernel_needs.need_bootable(found, ["nic", "pair"])
    assert sorted(tree.rglob("*")) == before  # nothing was written into the tree

    # built again, with one module more: the index is made again
    (tree / "drivers").mkdir()
    shutil.copy(module, tree / "drivers/more.ko")
    with (tree / "modules.order").open("a") as order:
        order.write(f"drivers/more.{ending}\n")
    again = kernel.find_kernel(str(tree))
    assert "more.ko" in (again.base / "lib/modules" / VERSION / "modules.dep").read_text()


def test_modules_that_were_installed_below_the_tree_are_taken(tmp_path: Path, module: Path) -> None:
    tree = make_tree(tmp_path / "linux", EVERYTHING)
    folder = tree / "install/lib/modules" / VERSION
    (folder / "kernel").mkdir(parents=True)
    shutil.copy(module, folder / "kernel/9p.ko")
    (folder / "modules.order").write_text("kernel/9p.ko\n")
    (folder / "modules.builtin").touch()
    assert kernel.find_kernel(str(tree)).base == tree / "install"


def test_a_kernel_without_modules_boots_if_all_is_built_in(tmp_path: Path) -> None:
    found = kernel.find_kernel(str(make_tree(tmp_path / "linux", EVERYTHING)))
    kernel_needs.need_bootable(found, ["nic", "pair", "netns", "router", "queues"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"9P_FS": "n"}, r"9p \(CONFIG_9P_FS\)"),
        ({"OVERLAY_FS": "m"}, r"overlay \(CONFIG_OVERLAY_FS=m, but its file is not there\)"),
        ({"DEVTMPFS": "n", "BLK_DEV_INITRD": "n"}, r"CONFIG_BLK_DEV_INITRD, CONFIG_DEVTMPFS"),
        ({"VIRTIO_PCI": "n"}, r"what hwrx's guests boot with: virtio_pci \(CONFIG_VIRTIO_PCI\)"),
        ({"E1000E": "n"}, r"what the topology nic is made of: e1000e \(CONFIG_E1000E\)"),
    ],
)
def test_each_option_that_a_guest_lacks_is_named(tmp_path: Path, options: dict[str, str], words: str) -> None:
    found = kernel.find_kernel(str(make_tree(tmp_path / "linux", EVERYTHING | options)))
    with pytest.raises(MachineError, match=words) as caught:
        kernel_needs.need_bootable(found, ["nic"])
    assert "make olddefconfig" in caught.value.remedy


def test_the_topology_nic_does_without_rxe(tmp_path: Path) -> None:
    found = kernel.find_kernel(str(make_tree(tmp_path / "linux", EVERYTHING | {"RDMA_RXE": "n"})))
    kernel_needs.need_bootable(found, ["nic"])
    with pytest.raises(MachineError, match="the topology pair is made of: rdma_rxe"):
        kernel_needs.need_bootable(found, ["pair"])


def test_what_was_not_built_or_is_for_another_machine_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernel was built in"):
        kernel.find_kernel(str(make_tree(tmp_path / "configured", EVERYTHING, image=False)))
    with pytest.raises(UsageError, match="configured for arm64"):
        kernel.find_kernel(str(make_tree(tmp_path / "arm", EVERYTHING, arch="arm64", image=False)))
    with pytest.raises(UsageError, match="for 32 bits"):
        kernel.find_kernel(str(make_tree(tmp_path / "small", EVERYTHING, bits=0)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not a tree in which a kernel was built"):
        kernel.find_kernel(str(tmp_path / "empty"))
    foreign = make_tree(tmp_path / "foreign", EVERYTHING)
    (foreign / build_tree.IMAGE).write_bytes(b"MZ" + bytes(54) + b"ARMd" + bytes(2000))
    with pytest.raises(UsageError, match="not a boot image of x86"):
        kernel.find_kernel(str(foreign))


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tree(tmp_path / "linux", EVERYTHING)
    assert kernel.find_kernel("~/linux").version == VERSION
    assert kernel.is_at_hand("~/linux") and not kernel.is_at_hand("6.12")
