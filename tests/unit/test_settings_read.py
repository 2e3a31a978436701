"""Which fields of a setting a path reads: what was asked for holds, or is refused, and only what holds is recorded."""

from __future__ import annotations

import itertools
import struct
from typing import Any, get_args

import pytest

from cython_ext.frames.packet import udp_frame, udp_template
from cython_ext.frames.packet_ring import port_filter
from hwrx import paths
from hwrx.control.messages import Done, Pattern, Prepare, Role, Setting
from hwrx.control.places import Place
from hwrx.errors import UsageError
from hwrx.paths.families import nic
from hwrx.runs import experiment, planning
from hwrx.runs.collecting import device_counts, join_ends, join_resent

PATTERNS = get_args(Pattern)
# one value for each field that is not every path's, different from the default and possible
OTHER: dict[str, Any] = {
    "window": 7, "batch": 5, "rate": 100.0, "arrivals": "poisson", "signal_every": 3, "inline": 32,
    "socket_buffer": 65536, "zerocopy_send": True, "zerocopy_receive": True, "mtu": 512, "gid_index": 1, "receives": 8,
    "completions": 9, "huge_pages": True, "link": "xdp", "crowd": 3, "crowd_on": "chain", "hook": "tap", "senders": 2,
    "netem": "loss 1%", "rest": 100, "settle": 100, "gid": "192.0.2.0/24", "traffic_class": 104, "service_level": 3,
    "connections": 5, "connect": "cm", "mix": "8:1,64:1", "srq": False, "pkey_index": 1,
    "ack_timeout": 14, "retry_count": 2, "rnr_retry": 3,
    "xdp_mode": "copy", "mr": "odp", "registration": "message",
    "multishot": True, "threaded_napi": True, "napi_defer_hard_irqs": 0, "gro_flush_timeout": 20_000,
}  # fmt: skip
# what a field is of, where that is no default
WITH: dict[str, dict[str, Any]] = {"srq": {"connections": 5}, "xdp_mode": {"link": "xdp"}}
ATOMIC = ("rdma-fetch-add", "rdma-cas")  # of eight bytes


def setting(path: str, pattern: str, **fields: Any) -> Setting:
    size = 8192 if "zerocopy_receive" in fields else 8 if path in ATOMIC else 64
    given = {"size": size, "rate": 50.0 if pattern == "paced" else None}
    return Setting(path=path, pattern=pattern, **{**given, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "pattern"), list(itertools.product(paths.PATHS, PATTERNS)))
def test_a_field_is_read_and_recorded_or_refused_by_name(path: str, pattern: Pattern) -> None:
    for field, value in OTHER.items():
        beside = {name: each for name, each in WITH.get(field, {}).items() if paths.reads_field(path, pattern, name)}
        asked = setting(path, pattern, **{field: value, **beside})
        if paths.reads_field(path, pattern, field):
            assert paths.settings_read(asked)[field] == value
            if (field, pattern) != ("senders", "paced"):  # an open loop has one sender
                paths.check_setting(asked)
        else:
            assert field not in paths.settings_read(asked)
            with pytest.raises(UsageError, match=f"{field}|crowd|hook|netem|senders") as caught:
                paths.check_setting(asked)
            assert caught.value.remedy


def test_every_field_that_only_some_paths_read_is_tried() -> None:
    selective = {
        field
        for field in Setting.__struct_fields__
        if not all(paths.reads_field(path, pattern, field) for path in paths.PATHS for pattern in PATTERNS)
    }
    assert selective == set(OTHER)


@pytest.mark.parametrize(
    ("path", "pattern", "field", "holds"),
    [
        ("tcp", "stream", "window", False), ("tcp", "paced", "window", True), ("udp", "stream", "window", True),
        ("udp", "pingpong", "window", False), ("rdma-send", "pingpong", "window", True),
        ("udp", "stream", "signal_every", False), ("rdma-read", "stream", "signal_every", False),
        ("rdma-read", "pingpong", "receives", False), ("rdma-write", "stream", "completions", False),
        ("rdma-ud", "pingpong", "traffic_class", True), ("rdma-ud", "pingpong", "retry_count", False),
        ("udp", "pingpong", "traffic_class", True),
        ("packet-ring", "stream", "huge_pages", False), ("xdp", "pingpong", "netem", False),
        ("packet-ring", "pingpong", "netem", True), ("xdp", "pingpong", "senders", False),
        ("nic-ring", "stream", "senders", False), ("tcp", "pingpong", "batch", False),
    ],
)  # fmt: skip
def test_what_each_path_reads(path: str, pattern: Pattern, field: str, holds: bool) -> None:
    assert paths.reads_field(path, pattern, field) is holds


def test_a_stream_of_tcp_says_what_bounds_it() -> None:
    with pytest.raises(UsageError, match="congestion window and both socket buffers") as caught:
        paths.check_setting(setting("tcp", "stream", window=4))
    assert "socket_buffer" in caught.value.remedy
    assert "rdma-send" in caught.value.remedy


def test_a_batch_that_no_call_takes_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 256 messages, not 257"):
        paths.check_setting(setting("udp", "stream", batch=257))


# --- in an experiment ------------------------------------------------------------------------------------------------


def layout(text: str) -> planning.Plan:
    return planning.plan_run(experiment.parse_experiment(text, source="test"))


def test_a_common_value_goes_to_the_paths_that_read_it() -> None:
    plan = layout(
        'paths = ["udp", "rdma-send"]\npatterns = ["pingpong", "stream"]\n[setting]\nsignal_every = 4\nbatch = 2'
    )
    assert not plan.skipped
    found = {(s.path, s.pattern): (s.signal_every, s.batch) for s in plan.settings}
    assert found == {
        ("udp", "pingpong"): (16, 16), ("udp", "stream"): (16, 2),
        ("rdma-send", "pingpong"): (4, 16), ("rdma-send", "stream"): (4, 2),
    }  # fmt: skip
    read = {(s.path, s.pattern): paths.settings_read(s) for s in plan.settings}
    assert "signal_every" not in read["udp", "stream"]
    assert read["rdma-send", "pingpong"]["signal_every"] == 4


def test_a_swept_value_makes_no_copies_of_a_path_that_does_not_read_it() -> None:
    plan = layout('paths = ["udp", "tcp"]\npatterns = ["stream"]\nrepeats = 1\n[sweep]\nwindow = [1, 8]')
    assert sorted(trial.label for trial in plan.trials) == [
        "tcp 64 B stream event", "udp 64 B stream event window=1", "udp 64 B stream event window=8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('paths = ["udp", "tcp"]\n[setting]\nsignal_every = 16', "tcp does not read signal_every in pingpong"),
        ('paths = ["udp"]\n[setting]\nwindow = 8', "udp does not read window in pingpong, only in stream"),
        ('paths = ["tcp"]\npatterns = ["stream"]\n[sweep]\nwindow = [1, 8]', "tcp does not read window in stream"),
        ('paths = ["udp", "rdma-send"]\n[path.udp]\nsignal_every = 4', "udp does not read signal_every"),
        ('paths = ["udp", "rdma-send"]\n[path.udp.stream]\ninline = 4', "udp does not read inline in stream"),
    ],
)
def test_a_value_that_nobody_reads_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layout(text)


def test_a_condition_that_a_path_cannot_have_leaves_the_path_out() -> None:
    plan = layout('paths = ["udp", "xdp"]\n[setting]\nnetem = "loss 20%"')
    assert [s.path for s in plan.settings] == ["udp"]
    assert [skip.label for skip in plan.skipped] == ["xdp 64 B pingpong event"]
    assert "netem is a queueing discipline" in plan.skipped[0].reason


# --- several senders -------------------------------------------------------------------------------------------------


def test_no_two_ends_of_a_trial_have_the_same_port() -> None:
    roles: tuple[Role, Role] = ("client", "server")
    place = {"here": Place(), "there": Place()}
    ports = [
        nic._port(Prepare(trial=trial, role=role, setting=setting("packet-ring", "pingpong"), sender=sender, **place))
        for trial in range(3)
        for sender in range(64)
        for role in roles
    ]
    assert len(set(ports)) == len(ports)
    last = Prepare(trial=nic.TRIALS - 1, role="client", setting=setting("xdp", "pingpong"), sender=63, **place)
    assert nic._port(last) < 1 << 16


def test_ends_that_met_different_things_are_added() -> None:
    ends = [
        Done(tally={"lost": 1, "wrong port": 2}, ended="complete", chosen={"port": 1}),
        Done(tally={"lost": 2, "bad checksum": 3}, ended="finished", chosen={"port": 2}),
    ]
    one = join_ends(ends, [1000, 1000])
    assert one.tally == {"lost": 3, "wrong port": 2, "bad checksum": 3}
    assert one.chosen == {"port": 1}


def test_what_a_device_counts_of_all_its_ends_is_counted_once() -> None:
    def grown(device: str, retries: int, boot: str = "b", port: int = 1) -> Done:
        return Done(
            tally={"lost": 1, "hw_completer_retry_err": retries, "odp_page_faults": 10 * retries},
            ended="complete",
            resent=retries,
            chosen={"device": device, "port": port},
            boot=boot,
        )

    # two senders on one device, one on another, one on a device of that name of another machine
    one = join_ends([grown("rxe0", 5), grown("rxe0", 6), grown("rxe1", 7), grown("rxe0", 8, boot="c")], [1] * 4)
    assert one.tally == {"lost": 4, "hw_completer_retry_err": 6 + 7 + 8, "odp_page_faults": 260}  # of its own regions
    assert one.resent == 6 + 7 + 8
    # a trial's client and its server, too, may be on one device; each port of it counts for itself
    both = [grown("mlx5_0", 3), grown("mlx5_0", 4), grown("mlx5_0", 5, port=2)]
    assert device_counts(both) == {"hw_completer_retry_err": 4 + 5}
    assert join_resent(both) == 4 + 5
    # a connection that counts for itself
    assert join_resent([Done(tally={}, ended="complete", resent=2), Done(tally={}, ended="complete", resent=2)]) == 4


def passes(program: bytes, frame: bytes) -> bool:
    """Run classic BPF over a frame, as the kernel would (Documentation/networking/filter.rst)."""
    code = list(struct.iter_unpack("HBBI", program))
    at = accumulator = index = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x28:
            accumulator = int.from_bytes(frame[k : k + 2], "big")
        elif operation == 0x48:
            accumulator = int.from_bytes(frame[index + k : index + k + 2], "big")
        elif operation == 0x30:
            accumulator = frame[k]
        elif operation == 0xB1:
            index = 4 * (frame[k] & 15)
        elif operation == 0x15:
            at += yes if accumulator == k else no
        else:
            assert operation == 0x06
            return k != 0


def test_of_several_senders_each_ring_takes_only_its_own_frames() -> None:
    def frame(port: int) -> bytes:
        ends = ("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.1", "192.0.2.2")
        return udp_frame(udp_template(*ends, 1111, port), b"x" * 20)

    program = port_filter(40001)
    assert passes(program, frame(40001))
    assert not passes(program, frame(40003))
    assert passes(program, bytes(12) + b"\x08\x06" + bytes(28))
    assert not passes(program, bytes(12) + b"\x86\xdd" + bytes(60))
    tcp = bytearray(frame(40001))
    tcp[23] = 6
    assert not passes(program, bytes(tcp))
