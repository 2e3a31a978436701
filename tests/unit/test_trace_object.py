"""What the programs' objects say of their structures: no layout is typed twice and trusted."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwrx import stages
from hwrx.probes import build, counting


def test_the_layouts_are_those_of_the_extension() -> None:
    from cython_ext.bpf.object_btf import structures
    from cython_ext.bpf.tracer import EVENT, TOTALS

    found = structures(build.find_or_build(stages.stage_header()), ["event", "totals", "cpu"])
    assert np.dtype(found["event"]) == EVENT
    assert np.dtype(found["totals"]) == TOTALS
    assert np.dtype(found["cpu"])["stages"].shape == (max(stage.number for stage in stages.STAGES) + 1,)


def test_a_layout_is_as_the_compiler_laid_it_down(tmp_path: Path) -> None:
    from cython_ext.bpf.object_btf import structures

    found = structures(build.find_or_build(stages.stage_header(), "drops"), ["dropped", "message"])
    dropped, message = np.dtype(found["dropped"]), np.dtype(found["message"])
    assert dropped["function"] == np.dtype("S40")
    assert dropped.itemsize % 8 == 0
    assert message["send_ns"] == np.dtype("i8")
    assert dict(message.fields or {})["trial"][1] == 32


def test_a_type_of_the_kernel_is_declared_once_and_its_layout_comes_from_btf() -> None:
    """Two declarations of one type are two lists; one outside the attribute would have the layout typed here."""
    declared: dict[str, list[str]] = defaultdict(list)
    relocated = re.compile(
        r"#pragma clang attribute push\(.*preserve_access_index.*?#pragma clang attribute pop", re.DOTALL
    )
    for file in sorted((Path(build.__file__).parent / "bpf").glob("*.[hc]")):
        text = re.sub(
            r"#elif defined\(__TARGET_ARCH_.*?#endif", "", file.read_text(), flags=re.DOTALL
        )  # one of them is built
        for part in relocated.findall(text):
            for name in re.findall(r"^(?:struct|union|enum) (\w+) \{", part, re.MULTILINE):
                declared[name].append(file.name)
    assert {"sock", "sk_buff", "rxe_qp", "udp_table", "napi_struct", "bpf_iter_meta"} <= set(declared)
    assert {name: files for name, files in declared.items() if len(files) > 1} == {}


def test_what_has_no_such_structure(tmp_path: Path) -> None:
    from cython_ext.bpf.object_btf import structures

    with pytest.raises(OSError, match="no struct carrier_pigeon"):
        structures(build.find_or_build(stages.stage_header(), "drops"), ["carrier_pigeon"])
    (tmp_path / "no.bpf.o").write_text("no object")
    with pytest.raises(OSError):
        structures(tmp_path / "no.bpf.o", ["settings"])


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("settings", counting.SETTINGS),
        ("bin", counting.BIN),
        ("cpu", counting.CPU),
        ("context_sum", counting.CONTEXT),
        ("queues", counting.QUEUES),
    ],
)
def test_what_a_flood_counts_is_read_as_it_was_written(name: str, read: np.dtype[Any]) -> None:
    """Signs and shapes are the reader's own; where each member stands is not."""
    from cython_ext.bpf.object_btf import structures

    written = np.dtype(structures(build.find_or_build(stages.stage_header(), "flood"), (name,))[name])
    assert (read.names, read.itemsize) == (written.names, written.itemsize)
    for member in read.names or ():
        ours, theirs = read.fields[member], written.fields[member]  # type: ignore[index]
        assert (ours[1], ours[0].itemsize) == (theirs[1], theirs[0].itemsize), member
