"""The ledger of claims: every file is whole, every predicate can go either way, and what cannot be decided says why."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import types
from collections.abc import Sequence

import msgspec
import pytest
from click.testing import CliRunner

from hwrx.claims import ftrace, inside, instruments, model, predicate, verdict
from hwrx.claims.ftrace import Call
from hwrx.claims.instruments import balance, bypass, functions, interrupts, pinning, ring
from hwrx.claims.model import Claim, Measurement, Ruling
from hwrx.claims.session import Sent, Session
from hwrx.cli import cli
from hwrx.control.messages import Setting
from hwrx.errors import MachineError, UsageError
from hwrx.memory.pages import OUT
from hwrx.verbs import devices

CLAIMS = model.every_claim()


def made(confirmed: str, **more: str) -> Claim:
    ruling = Ruling(confirmed=confirmed, figure=more.pop("figure", "{copies:.2f} copies"), **more)
    return Claim(claim="A claim.", question="Is it so?", says=["nobody"], instrument="functions", verdict=ruling)


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_whole(name: str) -> None:
    claim = CLAIMS[name]
    instruments.check_claim(claim)
    assert claim.claim.endswith(".") and claim.question.endswith("?") and claim.says
    assert claim.chapter in model.CHAPTERS
    asked = set().union(*(predicate.names_in(text) for text in _predicates(claim)))
    assert asked, "a verdict that no figure can change is none"
    fields = set(re.findall(r"{(\w+)", claim.verdict.figure))
    assert fields, "the sentence gives no figure"
    assert bool(claim.verdict.depends) == bool(claim.verdict.on)
    assert claim.verdict.needs, "a measurement that measured nothing would decide"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_can_be_confirmed_and_refuted(name: str) -> None:
    """By figures at either end of what its predicates compare with: no predicate holds always, or never."""
    claim = CLAIMS[name]
    asked = sorted(set().union(*(predicate.names_in(text) for text in _predicates(claim))))
    constants = [float(text) for each in _predicates(claim) for text in re.findall(r"\b\d+(?:\.\d+)?\b", each)]
    values = sorted({0.0, 1.0, 1e6, *constants, *(value * 1.5 + 1 for value in constants)})
    wanted = {"confirmed", "refuted", *(["depends"] if claim.verdict.depends else [])}
    seen: set[str] = set()
    # each figure in turn, or each two, take every value while the others have one in common
    for count in (1, 2):
        for chosen in itertools.combinations(asked, min(count, len(asked))) if not wanted <= seen else ():
            for common, *given in itertools.product(values, repeat=1 + len(chosen)):
                figures = dict.fromkeys(asked, common) | dict(zip(chosen, given, strict=True))
                held = predicate.predicate_holds(claim.verdict.confirmed, figures)
                other = bool(claim.verdict.depends) and predicate.predicate_holds(claim.verdict.depends, figures)
                seen.add("confirmed" if held else "depends" if other else "refuted")
    assert {"confirmed", "refuted"} <= seen
    assert ("depends" in seen) == bool(claim.verdict.depends)


def _predicates(claim: Claim) -> list[str]:
    return [text for text in (claim.verdict.needs, claim.verdict.confirmed, claim.verdict.depends) if text]


# --- predicates and verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copies", "expected"), [(1.0, "confirmed"), (0.99, "confirmed"), (0.5, "depends"), (2.0, "refuted")]
)
def test_the_verdict_follows_the_figure(copies: float, expected: str) -> None:
    claim = made("0.99 <= copies <= 1.01", depends="copies < 0.99", on="the size")
    ruled, words, why = verdict.judge_claim(claim, Measurement({"copies": copies}))
    assert (ruled, words, why) == (expected, f"{copies:.2f} copies", "")


def test_what_was_not_measured_decides_nothing() -> None:
    claim = made("copies == 1", needs="messages >= 100")
    assert verdict.judge_claim(claim, Measurement({"messages": 5, "copies": 1.0}))[0::2] == (
        "not tested here",
        "it takes messages >= 100, and messages is 5",
    )
    for figures in ({"messages": 100}, {"messages": 100, "copies": None}, {"messages": 100, "copies": float("nan")}):
        ruled, _, why = verdict.judge_claim(claim, Measurement(figures, absent={"copies": "no probe counts them"}))
        assert (ruled, why) == ("not tested here", "no probe counts them")
    assert verdict.judge_claim(made("a / b > 1", figure="{a}"), Measurement({"a": 1, "b": 0}))[2].startswith(
        "a quotient by 0"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b <= 3", True),
        ("not a == b", True),
        ("a + 2 * b == 7 and abs(-a) == 1", True),
        ("a > b or max(a, b) == 3", True),
        ("min(a, b) - b >= 0", False),
    ],
)
def test_predicates_are_arithmetic(text: str, expected: bool) -> None:
    assert predicate.predicate_holds(text, {"a": 1, "b": 3}) is expected


@pytest.mark.parametrize(
    "text", ["__import__('os')", "a.b > 1", "[a]", "a[0]", "lambda: a", "a >", "a if b else c", "a ** 9"]
)
def test_nothing_else_is_a_predicate(text: str) -> None:
    with pytest.raises(UsageError, match="is no predicate"):
        predicate.predicate_holds(text, {"a": 1, "b": 2, "c": 3})


def test_a_sentence_with_an_unknown_field_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot be filled.*'speed'"):
        verdict.judge_claim(made("copies == 1", figure="{speed}"), Measurement({"copies": 1}))


# --- parameters, names ------------------------------------------------------------------------------------------------


def test_settings_take_the_kind_of_the_default() -> None:
    known = {"size": 64, "gap": 0.5, "fast": False, "sizes": [64], "way": "recv"}
    changed = model.with_parameters(
        made("a"), ["size=1400", "gap=2", "fast=yes", "sizes=64,1400", "way=epoll"], known
    ).parameters
    assert changed == {"size": 1400, "gap": 2.0, "fast": True, "sizes": [64, 1400], "way": "epoll"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("size=big", r"size is to be a whole number, and 'big' is none"),
        ("fast=perhaps", r"true or false"),
        ("siz=1", r"no parameter 'siz'\n.*do you mean size\?"),
        ("size", r"sets nothing"),
    ],
)
def test_a_bad_setting_gets_words(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        model.with_parameters(made("a"), [setting], {"size": 64, "fast": False})
    assert re.search(words, str(told.value))


def test_an_unknown_claim_gets_near_names() -> None:
    with pytest.raises(UsageError, match="there is no claim 'woken'") as told:
        model.find_claim(["woken"], CLAIMS)
    assert "woken-by-data-ready" in str(told.value)


def test_a_file_that_is_no_claim_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('claim = "x"\nsurprise = 1\n')
    with pytest.raises(UsageError, match=r"x\.toml is no claim"):
        model.load_claim(file)


def test_an_instrument_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="no instrument 'function'"):
        instruments.find_instrument("function")
    assert all(instruments.find_instrument(name).figures for name in instruments.instrument_names())  # type: ignore[attr-defined]
    for parameters, words in (({"sizes": 1}, "no parameter 'sizes'"), ({"size": "x"}, "size is to be int")):
        with pytest.raises(UsageError, match=words):
            instruments.check_parameters(msgspec.structs.replace(made("a"), parameters=parameters))


@pytest.mark.parametrize(
    ("ruling", "figure", "near"),
    [
        (Ruling(confirmed="udp_rcv_sofd == 1", figure="{delivered}"), "udp_rcv_sofd", "udp_rcv_soft"),
        (Ruling(confirmed="delivered > 1", needs="mesages > 1", figure="{delivered}"), "mesages", "messages"),
        (Ruling(confirmed="delivered > 1", depends="in_order > 0", on="x", figure="{delivered}"), "in_order", ""),
        (Ruling(confirmed="delivered > 1", figure="{deliverd:.1%} of {size} B"), "deliverd", "delivered"),
    ],
)
def test_a_figure_that_the_instrument_does_not_give_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ruling: Ruling, figure: str, near: str
) -> None:
    claim = msgspec.structs.replace(made("a"), verdict=ruling, name="mine")
    with pytest.raises(UsageError, match=f"mine: the instrument 'functions' gives no figure '{figure}'") as told:
        instruments.check_claim(claim)
    assert near in told.value.remedy and "it gives: delivered, ip_rcv_core_calls" in told.value.remedy
    # the command says so before anything is booted or written
    file = tmp_path / "mine.toml"
    words = {"claim": claim.claim, "question": claim.question, "instrument": claim.instrument, "topology": "none"}
    ruled = {key: value for key, value in msgspec.structs.asdict(ruling).items() if value}
    lines = [f"{key} = {json.dumps(value)}" for key, value in words.items()]
    lines += ['says = ["nobody"]', "[verdict]", *(f"{key} = {json.dumps(value)}" for key, value in ruled.items())]
    file.write_text("\n".join(lines))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    done = CliRunner().invoke(cli, ["claims", "run", str(file), "--here", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError) and figure in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_what_the_kernel_refuses_is_a_reason_and_what_the_file_asks_in_vain_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = [
        (
            MachineError("this kernel has no iterator over UDP sockets (no such file)", remedy="x"),
            "no iterator over UDP",
        ),
        (MachineError("the kernel's function tracer needs root"), "needs root"),
    ]
    claim = msgspec.structs.replace(CLAIMS["file-knows-its-process"])
    for error, words in refusals:

        def refuse(session: Session, error: MachineError = error) -> Measurement:
            raise error

        monkeypatch.setattr(instruments, "find_instrument", lambda name, refuse=refuse: refuse)
        with Session() as session:
            found = inside.test(claim, session)
        assert (found.verdict, found.measurement) == ("not tested here", None)
        assert words in found.why and "remedy" not in found.why

    def nonsense(session: Session) -> Measurement:
        raise UsageError("there is no such place")

    monkeypatch.setattr(instruments, "find_instrument", lambda name: nonsense)
    with Session() as session, pytest.raises(UsageError, match="no such place"):
        inside.test(claim, session)


# --- the function tracer's words --------------------------------------------------------------------------------------

TRACE = """# tracer: function
#
# entries-in-buffer/entries-written: 4/4   #P:2
#
          <idle>-0       [001] d.h1.    17.000100: irq_handler_entry: irq=32 name=hwnic1-rx-0
          <idle>-0       [001] ..s1.    17.000200: ip_rcv <-__netif_receive_skb_one_core
       two words-216     [000] ..s..    17.000300: napi_poll: napi poll on napi struct 00000000 for device hwnic1 work 1 budget 64
         python3-216     [000] .....    17.000400: udp_recvmsg <-inet_recvmsg
"""  # noqa: E501


def test_the_tracers_lines_are_read() -> None:
    calls = list(ftrace.parse_stack(TRACE, {"ip_rcv": "ip_rcv_core"}))
    assert [(call.name, call.context, call.cpu, call.tid) for call in calls] == [
        ("irq_handler_entry", "hard IRQ", 1, 0),
        ("ip_rcv_core", "softirq", 1, 0),
        ("napi_poll", "softirq", 0, 216),
        ("udp_recvmsg", "thread", 0, 216),
    ]
    assert calls[2].task == "two words" and calls[0].detail.endswith("hwnic1-rx-0")
    assert [round(call.at) for call in calls] == [17000100, 17000200, 17000300, 17000400]


def call(name: str, at: float, context: str = "softirq", detail: str = "", cpu: int = 0, task: str = "x") -> Call:
    return Call(name, at, cpu, context, task, 7, detail)


def test_functions_are_counted_by_message_and_context() -> None:
    times = [Sent(1_000_000, 1_100_000), Sent(2_000_000, 2_100_000), Sent(3_000_000, 0)]
    calls = [
        call("a", 1010), call("b", 1020), call("b", 1500),  # the third between two messages
        call("b", 2010, "thread"), call("a", 2020), call("sched_waking", 2030, detail="comm=x pid=7 prio=1"),
        call("sched_waking", 2040, "thread", "comm=x pid=7 prio=1"),
        call("sched_waking", 2050, detail="comm=y pid=70 "),
    ]  # fmt: skip
    found = functions.reckon_functions(times, 7, calls, ["a", "b"], ["a", "b"]).figures
    assert (found["messages"], found["delivered"], found["in_order"], found["seen_whole"]) == (3, 2, 0.5, 1.0)
    assert (found["a_share"], found["a_soft"], found["b_reader"], found["b_calls"]) == (1.0, 1.0, 0.5, 1.0)
    assert (found["woken_share"], found["woken_calls"], found["woken_soft"]) == (0.5, 0.5, 1.0)
    begun = functions.reckon_functions(times, 7, calls, ["a", "b"], ["a", "b"], "a").figures
    assert begun["seen_whole"] == 0.5  # the second message's b came before its a


def test_a_hook_that_is_asked_twice_is_told_by_who_asks() -> None:
    before = [call("nf_hook_slow", 1, detail="ip_rcv"), call("route", 2), call("ip_local_deliver", 3)]
    order = ["route", "ip_local_deliver", "nf_hook_slow<ip_local_deliver", "udp_rcv"]
    asked = [*before, call("nf_hook_slow", 4, detail="ip_local_deliver.part.0"), call("udp_rcv", 5)]
    late = [*before, call("udp_rcv", 4), call("nf_hook_slow", 5, detail="ip_local_deliver")]
    assert functions._in_order(asked, order)
    assert not functions._in_order(asked, ["route", "nf_hook_slow", "udp_rcv"])  # of all its calls the first counts
    assert not functions._in_order(late, order)
    assert not functions._in_order([*before, call("udp_rcv", 4)], order)  # the other hook alone was asked


def test_a_call_has_one_of_its_own_before_it_on_its_cpu() -> None:
    calls = [call("look", 1), call("queue", 2), call("look", 3, cpu=1), call("queue", 4), call("queue", 5, cpu=1)]
    assert balance.share_after(calls, "look", "queue") == pytest.approx(2 / 3)
    assert balance.share_after(calls[:1], "look", "queue") is None


def test_a_buffers_address_is_its_pages_and_its_place_in_it() -> None:
    assert ring.physical_addresses([0x9000, 0x3000, 0x5000], 4096, 4, 2048) == [0x9000, 0x9800, 0x3000, 0x3800]


POLL = "napi poll on napi struct 0 for device eth1 work {} budget 64"


def test_interrupts_are_held_against_polls() -> None:
    rx = "irq=3 name=eth1-rx-0"
    calls = [
        call("irq_handler_entry", 1, "hard IRQ", rx), call("napi_poll", 5, detail=POLL.format(64)),
        call("napi_complete_done", 8), call("napi_poll", 9, detail=POLL.format(10)),
        call("softirq_exit", 10, detail="vec=3 [action=NET_RX]"),
        call("irq_handler_entry", 11, "hard IRQ", "irq=4 name=eth1-tx-0"),
        call("irq_handler_entry", 20, "hard IRQ", rx),
        call("napi_complete_done", 25), call("napi_poll", 26, detail=POLL.format(2), task="ksoftirqd/0"),
        call("softirq_exit", 27, detail="vec=3 [action=NET_RX]"),
    ]  # fmt: skip
    found = interrupts.reckon_interrupts(calls, "eth1", 80).figures
    assert (found["interrupts"], found["polls"], found["received"]) == (2, 3, 76)
    assert (found["most_in_a_poll"], found["most_in_a_softirq"], found["interrupts_while_polling"]) == (64, 74, 0)
    assert found["polls_in_ksoftirqd"] == pytest.approx(1 / 3)
    while_polling = [*calls[:2], call("irq_handler_entry", 6, "hard IRQ", rx), *calls[2:]]
    interrupted = interrupts.reckon_interrupts(while_polling, "eth1", 80).figures
    assert (interrupted["interrupts_while_polling"], interrupted["pollings_interrupted"]) == (1, 1)
    assert (found["pollings"], interrupted["pollings"], found["pollings_interrupted"]) == (2, 2, 0)


def test_a_pages_fate_is_one_of_four() -> None:
    fates = [pinning._state(5, *after) for after in ((5, 5), (7, 7), (5, OUT), (7, OUT))]
    assert fates == [0, 1, 2, 3]


# --- verbs NICs -------------------------------------------------------------------------------------------------------


def verbs_tree(folder: pathlib.Path, ports: dict[str, list[str]], software: Sequence[str] = ()) -> pathlib.Path:
    """Make what /sys/class/infiniband would hold: devices with a port for each state."""
    for number, (name, states) in enumerate(ports.items()):
        device = folder / name
        (device / "ports").mkdir(parents=True)
        (device / "node_guid").write_text("0000:0000:0000:0001\n")
        if name in software:
            (device / "parent").write_text("hwrx0\n")
        else:
            (device / "device").mkdir()
        for at, state in enumerate(states, 1):
            port = device / "ports" / str(at)
            for sub in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
                (port / sub).mkdir(parents=True)
            for file, text in (
                ("state", state), ("link_layer", "Ethernet"), ("rate", "100 Gb/sec (4X EDR)"),
                ("gids/0", f"::ffff:192.0.2.1{number}{at}"), ("gid_attrs/types/0", "RoCE v2"),
                ("gid_attrs/ndevs/0", f"eth{number}{at}"),
            ):  # fmt: skip
                (port / file).write_text(text + "\n")
    return folder


UP, DOWN = "4: ACTIVE", "1: DOWN"


@pytest.mark.parametrize(
    ("ports", "chosen"),
    [
        ({"mlx5_0": [UP], "mlx5_1": [UP], "rxe0": [UP]}, [("mlx5_0", 1), ("mlx5_1", 1)]),
        ({"mlx4_0": [UP, UP], "mlx5_0": [DOWN, UP]}, [("mlx4_0", 1), ("mlx5_0", 2)]),
        ({"mlx4_0": [UP, UP], "mlx5_0": [DOWN]}, [("mlx4_0", 1), ("mlx4_0", 2)]),
        ({"mlx5_0": [UP], "mlx5_1": [DOWN], "rxe0": [UP]}, "has 1 (mlx5_0 port 1: ACTIVE, mlx5_1 port 1: DOWN)"),
        ({"rxe0": [UP], "rxe1": [UP]}, "this machine has no verbs NIC (its verbs devices: rxe0, rxe1)"),
        ({}, "this machine has no verbs NIC (its verbs devices: none)"),
    ],
)  # fmt: skip
def test_the_ends_are_two_active_ports_of_nics(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    ports: dict[str, list[str]],
    chosen: list[tuple[str, int]] | str,
) -> None:
    monkeypatch.setattr(devices, "VERBS", verbs_tree(tmp_path, ports, ["rxe0", "rxe1"]))
    monkeypatch.setattr(devices, "device_names", lambda: sorted(ports))
    if isinstance(chosen, str):
        with pytest.raises(MachineError, match=re.escape(chosen)):
            devices.hardware_ends()
        return
    with Session() as session:
        bypass.choose_ports(session, "hardware")
        places = [session.wire.places[role] for role in ("client", "server")]
        assert [(place.verbs, place.port) for place in places] == chosen
        assert len({(place.address, place.netdev) for place in places}) == 2 and all(place.netdev for place in places)
        session.use("none")
        with pytest.raises(UsageError, match="needs a wire"):
            _ = session.wire


def test_a_device_that_is_not_there_is_a_reason_and_one_for_both_ends_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "VERBS", verbs_tree(tmp_path, {"mlx5_0": [UP]}))
    monkeypatch.setattr(devices, "device_names", lambda: ["mlx5_0"])
    with Session() as session:
        with pytest.raises(MachineError, match="no verbs device 'mlx5_7'"):
            bypass.choose_ports(session, "mlx5_0,mlx5_7")
        with pytest.raises(UsageError, match="both ends on one device"):
            bypass.choose_ports(session, "mlx5_0")


def test_ways_into_the_kernel_are_counted() -> None:
    calls = [
        call("sys_enter", 1, "thread", "NR 16"), Call("sys_enter", 2, 0, "thread", "other", 9, "NR 0"),
        call("softirq_entry", 3, detail="vec=3 [action=NET_RX]"), call("softirq_entry", 4, detail="vec=9 [action=RCU]"),
        call("softirq_entry", 5, detail="vec=6 [action=TASKLET]"), call("irq_handler_entry", 6, "hard IRQ", "irq=3"),
        call("workqueue_execute_start", 7, "thread"), call("ip_rcv", 8),
    ]  # fmt: skip
    found = bypass.counted(calls, {7})
    assert [found[words] for words in bypass.KINDS.values()] == [1, 1, 2, 1]


def test_what_the_machine_does_beside_is_no_messages_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel interrupts at will: its events are put in, 3 for a short trial, 8 for a long one, 4 while it idles."""
    events = iter([3, 8, 4])

    class Counted:
        def __init__(self, functions: list[str], named: list[str]) -> None:
            self.calls = [call("irq_handler_entry", 0, "hard IRQ", "irq=9")] * next(events)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    class Trials:
        def measure(self, number: int, setting: Setting) -> types.SimpleNamespace:
            return types.SimpleNamespace(tally={"delivered": setting.messages})

    monkeypatch.setattr(bypass, "Ftrace", Counted)
    found, delivered = bypass._fewest(Trials(), "udp", 64, 10, "event", 1)  # type: ignore[arg-type]
    assert delivered == bypass.FEW + 10
    assert found[bypass.KINDS["irq/irq_handler_entry"]] == pytest.approx((8 - 3 - 4) / 10)
