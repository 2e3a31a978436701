"""On what a run was measured, as its manifest says: the words that each caption needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hwrx import paths as delivery

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def label_of_run(run: Run) -> str:
    """Say on what the run was measured: what each caption needs so that nobody takes it for something else."""
    said = []
    if run.manifest["clock"] == "icount":
        said.append("virtual time, 1 ns = 1 guest instruction")
    elif run.emulated:
        said.append("EMULATED guest: compare within the run only")
    else:
        said.append("wall clock")
    if kernel := kernel_of(run):
        said.append(f"Linux {kernel}")
    said.append(f"topology {run.manifest['topology']}")
    if run.status != "complete":
        said.append(f"{run.status.upper()} run")
    if run.damage:
        said.append("DAMAGED run")
    return ", ".join(said)


def kernel_of(run: Run) -> str:
    """The release of the kernel that the messages crossed; empty where the manifest does not say."""
    kernel = find_key(run.manifest.get("machine"), "kernel")
    if isinstance(kernel, dict):
        kernel = kernel.get("release")
    return str(kernel or "")


def machine_of(run: Run) -> str:
    """Return what tells one machine from another without its name: its processor, and whether the guest is emulated."""
    model = find_key(run.manifest.get("host") or run.manifest.get("machine"), "model")
    return f"{model or 'unknown'}{', an emulated guest' if run.manifest.get('emulated') else ''}"


def find_key(tree: object, key: str) -> object:
    """Return the first value of `key` anywhere in nested dictionaries, nearest to the top first."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, dict) and node.get(key) is not None:
                return node[key]
        level = [value for node in level if isinstance(node, dict) for value in node.values()]
    return None


def software_rdma(run: Run) -> bool:
    """Whether the run's verbs paths crossed SoftRoCE: its device says so, or the lab's guest has no other."""
    if not any(delivery.PATHS[p].needs == "verbs" for p in run.experiment.paths if p in delivery.PATHS):
        return False
    text = msgspec.json.encode(run.manifest).decode()
    return "rxe" in text or run.manifest["topology"] == "pair"


def flat_changes(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines `a.b.c`, value. What is empty is left out."""
    if isinstance(tree, dict):
        return [
            line
            for key, value in tree.items()
            for line in flat_changes(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(tree, list | tuple):
        if all(not isinstance(item, dict | list) for item in tree):
            return [(prefix, " ".join(map(str, tree)))] if tree else []
        return [line for place, value in enumerate(tree) for line in flat_changes(value, f"{prefix}.{place}")]
    return [] if tree is None or tree == "" else [(prefix, str(tree))]
