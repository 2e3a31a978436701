"""What a machine may lack for tracing, each in words; and that nothing else needs it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from hwrx import paths, stages
from hwrx.cli import cli
from hwrx.errors import MachineError
from hwrx.probes import attaching, build
from hwrx.runs import experiment
from hwrx.timelines import traced


def test_without_clang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLANG", "no-such-clang")
    with pytest.raises(build.BuildError, match="clang") as caught:
        build.compile_into(tmp_path, stages.stage_header())
    assert "apt install" in caught.value.remedy
    assert not list(tmp_path.glob("*.o"))


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "clang"
    fake.write_text("#!/bin/sh\necho 'message.h:1: something odd' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CLANG", str(fake))
    with pytest.raises(build.BuildError, match="something odd"):
        build.compile_into(tmp_path / "out", stages.stage_header())
    assert not list((tmp_path / "out").glob("*.o"))


def test_an_architecture_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(build.BuildError, match="s390x"):
        build.compile_into(tmp_path, stages.stage_header())


def test_the_objects_name_follows_the_catalogue() -> None:
    one, other = build.object_name(stages.stage_header()), build.object_name(stages.stage_header(stages.STAGES[1:]))
    assert one != other


def test_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(attaching, "_capable", lambda: False)
    with pytest.raises(MachineError, match="needs root"):
        attaching.require_tracer()


def test_without_btf(monkeypatch: pytest.MonkeyPatch) -> None:
    from cython_ext.bpf import kernel_btf

    def refuse(*arguments: Any) -> None:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(kernel_btf, "kernel_knows", refuse)
    monkeypatch.setattr(attaching, "require_tracer", lambda: None)
    with pytest.raises(MachineError, match="no BTF"):
        attaching.Prober(["udp"])


def test_locked_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(attaching, "LOCKDOWN", lockdown)
    for state in ("[none] integrity confidentiality", "none [integrity] confidentiality"):
        lockdown.write_text(state)
        attaching.require_tracer()
    lockdown.write_text("none integrity [confidentiality]")
    with pytest.raises(MachineError, match="locked down") as caught:
        attaching.require_tracer()
    assert "lockdown=confidentiality" in str(caught.value.remedy)


def test_a_kernel_without_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stage is unavailable, with the reason; the next best probe is taken where there is one."""
    from cython_ext.bpf import kernel_btf

    def knows(functions: Any, *more: Any) -> Any:
        return {name: (1, "") for name in functions if name not in ("udp_rcv", "udpv6_rcv", "__skb_recv_udp")}, {}

    monkeypatch.setattr(kernel_btf, "kernel_knows", knows)
    monkeypatch.setattr(attaching, "require_tracer", lambda: None)
    found = {each.stage.name: each for each in attaching.Prober(["udp"]).choose()}
    assert not found["udp_rcv"].available
    assert "this kernel has no function udp_rcv to probe" in found["udp_rcv"].reason
    assert "this kernel has no tracepoint net_dev_queue" in found["net_dev_queue"].reason
    assert found["ip_rcv"].available
    assert found["sk_filter"].available


def test_a_path_of_which_nothing_is_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the comparison goes on without timelines."""
    said: list[str] = []

    class Writer:
        def log(self, line: str) -> None:
            said.append(line)

        def note(self, **what: Any) -> None:
            said.append(str(what))

    with pytest.raises(MachineError, match="no stage of hca is stamped by anybody"):
        traced.RunTracer(cast(Any, None), ["hca"])
    monkeypatch.setattr(paths, "stage_chain", lambda path: [])
    asked = experiment.from_options(paths=["udp"], trace=True)
    with traced.traced_twins(asked, None, cast(Any, Writer())) as after:
        after(None, None, None, None)
    assert "no tracing: no stage of udp" in said[0]
    assert "problem" in said[1]


def test_without_the_extension_the_rest_works() -> None:
    script = (
        "import sys\nsys.modules['cython_ext.bpf.tracer'] = None\n"
        "import hwrx.runs.schedule, hwrx.runs.testbed, hwrx.commands.compare, hwrx.timelines.traced\n"
        "from hwrx.probes import attaching\n"
        "from hwrx.errors import MachineError\n"
        "try:\n    attaching.require_tracer()\nexcept MachineError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "without libbpf" in done.stdout
    assert "libbpf-dev" in done.stdout


def test_the_catalogue_alone_needs_nothing() -> None:
    done = CliRunner().invoke(cli, ["stages", "rdma-write", "--no-probe"])
    assert done.exit_code == 0, done.output
    assert "rxe_post_send" in done.output


def test_a_path_that_has_no_stages() -> None:
    done = CliRunner().invoke(cli, ["stages", "carrier-pigeon"])
    assert done.exit_code != 0


def test_a_size_of_zero_has_no_walk() -> None:
    done = CliRunner().invoke(cli, ["walk", "udp", "--size", "0"])
    assert done.exit_code != 0
    assert "at least 8 bytes" in str(done.exception)
