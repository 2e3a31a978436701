"""A guest on a kernel of the user's own, booted from the tree that it was built in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hwrx.lab import build_tree, initramfs, kernel
from hwrx.lab.vm import Guest


@pytest.fixture
def tree(tmp_path: Path, needs: Callable[..., None]) -> Path:
    """A tree as `make bzImage modules` leaves it, made of the files of the distribution's default kernel."""
    needs("guest")
    packaged = kernel.find_kernel()
    tree = tmp_path / "linux"
    image = tree / build_tree.IMAGE
    image.parent.mkdir(parents=True)
    image.symlink_to(packaged.image)
    (tree / ".config").symlink_to(packaged.base / "boot" / f"config-{packaged.version}")
    folder = packaged.base / "lib/modules" / packaged.version
    names = []
    for file in initramfs.module_files(packaged.base, packaged.version, [*initramfs.MODULES, "veth"]):
        name = file.relative_to(folder / "kernel").with_name(f"{file.name.partition('.')[0]}.ko")
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(initramfs.unpacked_modules(file))
        names.append(str(name.with_suffix(".o")))
    (tree / "modules.order").write_text("\n".join(names) + "\n")
    (tree / "modules.builtin").write_bytes((folder / "modules.builtin").read_bytes())
    return tree


def test_a_guest_boots_from_a_tree_and_finds_its_modules_there(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = kernel.find_kernel()
    before = sorted(tree.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where the links to its modules go
    with Guest("netns", kernel=str(tree)) as guest:
        assert guest.describe()["kernel"] == packaged.version and guest.describe()["package"] == ""
        said = guest.run(["sh", "-c", "uname -r; modprobe -a veth overlay && modinfo -n veth"])
        assert said.returncode == 0, said.stdout
        assert said.stdout.split()[0] == packaged.version
    assert sorted(tree.rglob("*")) == before
