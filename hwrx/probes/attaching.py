"""Which program stamps which stage on this kernel: each way is tried, best first; what fails is kept with its reason.

No kernel version is looked at: a way is there when the kernel's BTF has the function or tracepoint, when the verifier
takes the program and when it can be attached. Where functions cannot be probed at all (no function tracer, lockdown),
the tracepoints, the netfilter links and the cgroup hook remain.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwrx import stages
from hwrx.errors import MachineError
from hwrx.probes import build, cgroups, symbols
from hwrx.stages import Probe, Stage

if TYPE_CHECKING:
    from cython_ext.bpf.tracer import LoadError, Tracer

MODULES = ("rdma_rxe", "ib_uverbs", "af_packet", "ipv6")
FUNCTION_KINDS = ("fentry", "fexit")
HOOKS = {"PRE_ROUTING": 0, "LOCAL_IN": 1, "LOCAL_OUT": 3, "POST_ROUTING": 4}
FAMILIES = (2, 10)  # NFPROTO_IPV4, NFPROTO_IPV6
PRIORITY = -2000  # before every hook of netfilter's own, except the raw extremes that it keeps for itself
ENOTSUPP = 524  # the kernel's own, which is in no errno.h
REFUSALS = (errno.EPERM, errno.EOPNOTSUPP, ENOTSUPP)  # of probing functions at all
# what a thread leaves for the first skb stage; without any of them that stage need not look
HOLDERS = ("sys_sendto__fentry", "sys_sendmsg__fentry", "sys_sendmmsg__fentry")
# what sees receive calls return; without any of them a message is identified when its bytes have been copied
EXITS = tuple(program for probe in stages.BY_NAME["sys_exit recv"].probes for program in probe.programs)
# what tells when a softirq works; without both who works at a stage is not observed
CONTEXTS = ("softirq_entry__tp", "softirq_exit__tp")
# Left out of histograms: a probe at the end of system calls makes every call of the machine take the slow way. And a
# hook that is empty otherwise costs more than the program in it; net_dev_queue and netif_receive_skb are close by.
DEAR = ("sys_exit recv",)
DEAR_KINDS = ("netfilter", "cgroup_skb")
LOCKDOWN = pathlib.Path("/sys/kernel/security/lockdown")
# x86 without a randomised memory layout (Documentation/arch/x86/x86_64/mm.rst)
PAGE_OFFSET, VMEMMAP = 0xFFFF888000000000, 0xFFFFEA0000000000


@dataclass(frozen=True)
class Found:
    """What became of a stage: the probe that stamps it, or `probe` None and why."""

    stage: Stage
    probe: Probe | None
    reason: str = ""

    @property
    def available(self) -> bool:
        """Whether something stamps the stage."""
        return self.probe is not None


class Prober:
    """Finds a way for each stage, loads, attaches. `close` detaches everything.

    `ways`: load only what the stages on them need (None: everything). `histograms`: there will be no timelines, so the
    dearest stages are left out. `namespaces`: names, as `ip netns` has them, of those whose netfilter hooks are wanted
    (none: the current one's).
    """

    def __init__(
        self,
        ways: Iterable[str] | None = None,
        *,
        namespaces: Sequence[str] = (),
        ring_bytes: int = 1 << 24,
        histograms: bool = False,
    ) -> None:
        require_tracer()
        self._namespaces = tuple(namespaces)
        self._ring_bytes = ring_bytes
        wanted = None if ways is None else set(ways)
        self._histograms = histograms
        self._stages = [
            stage
            for stage in stages.STAGES
            if (wanted is None or wanted & stage.ways) and not (histograms and stage.name in DEAR)
        ]
        self._object = _object()
        self._refused: dict[str, str] = {}  # program -> why
        self._no_functions = ""
        self.tracer: Tracer | None = None
        self._sections: dict[str, str] = {}
        self._targets: dict[str, tuple[int, str]] = {}  # program -> BTF id, module
        self._look()

    def _look(self) -> None:
        from cython_ext.bpf import kernel_btf, tracer

        with tracer.Tracer(self._object) as opened:
            self._sections = opened.programs()
        targets: dict[str, set[str]] = {}
        for section in self._sections.values():
            kind, _, target = section.partition("/")
            targets.setdefault(kind, set()).add(target)
        functions = targets.get("fentry", set()) | targets.get("fexit", set())
        try:
            known, points = kernel_btf.kernel_knows(functions, targets.get("tp_btf", set()), MODULES)
        except OSError as error:
            raise MachineError(
                f"this kernel gives no BTF (/sys/kernel/btf/vmlinux: {error.strerror})",
                remedy="use a kernel built with CONFIG_DEBUG_INFO_BTF=y; distributions' kernels are",
            ) from None
        for program, section in self._sections.items():
            kind, _, target = section.partition("/")
            if kind in FUNCTION_KINDS and target not in known:
                self._refused[program] = f"this kernel has no function {target} to probe (or its module is not loaded)"
            elif kind == "tp_btf" and target not in points:
                self._refused[program] = f"this kernel has no tracepoint {target}"
            elif kind in (*FUNCTION_KINDS, "tp_btf"):
                self._targets[program] = (points if kind == "tp_btf" else known)[target]

    def choose(self) -> list[Found]:
        """Find, for each stage, the best probe that nothing speaks against so far."""
        return [self._choose(stage) for stage in self._stages]

    def _choose(self, stage: Stage) -> Found:
        if not stage.probes:
            return Found(stage, None, stage.why_not)
        reasons = []
        for probe in stage.probes:
            if probe.kind == "user":
                return Found(stage, probe)
            if why := self._against(probe):
                reasons.append(f"{probe.kind} {probe.target}: {why}")
            else:
                return Found(stage, probe)
        return Found(stage, None, "; ".join(reasons))

    def _against(self, probe: Probe) -> str:
        if probe.kind in FUNCTION_KINDS and self._no_functions:
            return self._no_functions
        if probe.fallback and not self._no_functions:
            return "not used: functions can be probed here, and this would only add to what is measured"
        if self._histograms and probe.kind in DEAR_KINDS:
            return "left out of histograms, which are to disturb least"
        left = [program for program in probe.programs if program not in self._refused]
        if left and not any(program in self._refused for program in probe.along):
            return ""
        return "; ".join(dict.fromkeys(self._refused[p] for p in (*probe.programs, *probe.along) if p in self._refused))

    def programs(self, found: Iterable[Found]) -> list[str]:
        """Name the programs behind a choice, in the order in which they are attached."""
        names: dict[str, None] = {}
        for each in found:
            if each.probe is not None:
                for program in (*each.probe.programs, *each.probe.along):
                    if program not in self._refused:
                        names[program] = None
        return list(names)

    def start(self) -> list[Found]:
        """Load and attach; return what became of each stage. MachineError where nothing can be loaded at all."""
        from cython_ext.bpf import tracer

        # each round ends with everything attached, or with at least one program more that is refused
        for _ in range(len(self._sections) + 2):
            found = self.choose()
            names = self.programs(found)
            self.close()
            self.tracer = tracer.Tracer(self._object)
            bases = memory_layout()
            try:
                self.tracer.load(
                    names,
                    {name: self._targets[name] for name in names if name in self._targets},
                    ring_bytes=self._ring_bytes,
                    holds=any(name in names for name in HOLDERS),
                    exits=any(name in names for name in EXITS),
                    contexts=all(name in names for name in CONTEXTS),
                    **bases,
                )
            except tracer.LoadError as error:
                self._note_refusal(error)
                continue
            if self._attach(names):
                return found
        raise MachineError("no set of tracing programs could be attached", remedy="hwrx stages names each reason")

    def _note_refusal(self, error: LoadError) -> None:
        kind = self._sections.get(error.program, "").partition("/")[0]
        if not kind:
            raise MachineError(
                f"the tracing programs could not be loaded: {error.strerror}\n{error.said.strip()[-1500:]}",
                remedy="hwrx doctor says what this kernel allows",
            )
        if kind in FUNCTION_KINDS and error.errno in REFUSALS:
            self._no_functions = f"this kernel lets no function be probed ({error.strerror})"
        elif kind == "netfilter":
            self._refuse_kind("netfilter", f"this kernel has no BPF netfilter links ({error.strerror})")
        else:
            self._refused[error.program] = f"refused by the kernel: {last_word(error.said) or error.strerror}"

    def _refuse_kind(self, kind: str, why: str) -> None:
        for program, section in self._sections.items():
            if section.partition("/")[0] == kind:
                self._refused[program] = why

    def _attach(self, names: Iterable[str]) -> bool:
        """Attach what is loaded; whether all went well."""
        assert self.tracer is not None
        before = len(self._refused)
        for name in names:
            section = self._sections[name]
            try:
                if section == "netfilter":
                    self._attach_hook(name)
                elif section.startswith("cgroup_skb"):
                    with cgroups.opened_root() as descriptor:
                        self.tracer.attach_cgroup(name, descriptor)
                else:
                    self.tracer.attach(name)
            except MachineError as error:
                self._refused[name] = f"cannot be attached: {error.args[0]}"
            except OSError as error:
                self._refused[name] = f"cannot be attached: {error.strerror}"
                if section.partition("/")[0] in FUNCTION_KINDS and error.errno in REFUSALS:
                    self._no_functions = f"this kernel lets no function be probed ({error.strerror})"
        return len(self._refused) == before and bool(self.tracer.attached)

    def _attach_hook(self, name: str) -> None:
        assert self.tracer is not None
        target = name.removesuffix("__netfilter").upper()
        for family in FAMILIES:
            if family == 10 and not pathlib.Path("/proc/sys/net/ipv6").exists():
                continue
            if not self._namespaces:
                self.tracer.attach_netfilter(name, family, HOOKS[target], PRIORITY)
            for namespace in self._namespaces:
                with _opened(f"/run/netns/{namespace}") as descriptor:
                    self.tracer.attach_netfilter(name, family, HOOKS[target], PRIORITY, descriptor)

    def close(self) -> None:
        """Detach and unload; harmless when nothing is."""
        if self.tracer is not None:
            self.tracer.close()
            self.tracer = None


def require_tracer() -> None:
    """Raise MachineError, naming what to type, where this machine cannot trace at all."""
    try:
        from cython_ext.bpf import tracer  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"hwrx was built without libbpf, so it cannot trace ({error})",
            remedy="apt install libbpf-dev, and install hwrx again",
        ) from None
    if os.geteuid() != 0 and not _capable():
        raise MachineError("tracing needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN", remedy="run it as root")
    with contextlib.suppress(OSError):
        if "[confidentiality]" in LOCKDOWN.read_text(encoding="utf-8"):
            raise MachineError(
                "the kernel is locked down (confidentiality), which forbids BPF to read kernel memory",
                remedy="boot without lockdown=confidentiality",
            )


def _capable() -> bool:
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return all(held >> bit & 1 for bit in (12, 38, 39))  # CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF


def _object() -> pathlib.Path:
    try:
        return build.find_or_build(stages.stage_header())
    except build.BuildError as error:
        raise MachineError(str(error), remedy=error.remedy) from None


def memory_layout() -> dict[str, Any]:
    """Find where the kernel maps its pages: the variables' addresses where the layout is random, or x86's constants."""
    addresses = symbols.noted_symbols("layout", ("page_offset_base", "vmemmap_base"), _find_bases)
    if all(addresses.values()):
        return {**addresses, "constant": False}
    if os.uname().machine == "x86_64":
        return {"page_offset_base": PAGE_OFFSET, "vmemmap_base": VMEMMAP, "constant": True}
    return {}


def _find_bases(names: Sequence[str]) -> dict[str, int]:
    """Ask the kernel; where it does not let itself be asked so (before Linux 5.16), read what it writes out."""
    from cython_ext.bpf.bpf_reader import Reader

    answer = bytearray(8 * len(names))
    try:
        with Reader(build.find_or_build(stages.stage_header(), "symbols"), b"") as reader:
            reader.run("find_bases", answer)
    except (OSError, build.BuildError):
        return symbols.from_kallsyms(names)
    return dict(zip(names, struct.unpack(f"={len(names)}Q", answer), strict=True))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def last_word(said: str) -> str:
    """The verifier's last line before its summary, which is its reason."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("libbpf:")]
    lines = [line for line in lines if not line.startswith(("processed", "verification time", "stack depth", "--"))]
    if lines:
        return lines[-1]
    words = [
        line for line in said.splitlines() if "failed to load:" not in line and "failed to load object" not in line
    ]
    return words[-1].removeprefix("libbpf: ") if words else ""
