"""The words of the verbs paths, and the decisions that need no device."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cython_ext.verbs import verbs_device, verbs_event, wc_words
from hwrx import paths
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.errors import MachineError, PathError, PeerError, UsageError
from hwrx.paths import verbs_end
from hwrx.paths.verbs_end import End, agree_ends, choose_device, choose_gid, choose_mtu, parse_end


class Gid(NamedTuple):
    number: int
    raw: bytes
    type: str


LINK_LOCAL = Gid(0, bytes.fromhex("fe80" + "00" * 13 + "01"), "RoCE v2")
V1 = Gid(1, bytes.fromhex("00" * 10 + "ffff" + "c6124d01"), "RoCE v1")
IPV4 = Gid(2, bytes.fromhex("00" * 10 + "ffff" + "c6124d01"), "RoCE v2")
GLOBAL = Gid(3, bytes.fromhex("20010002" + "00" * 11 + "01"), "RoCE v2")
OTHER_IPV4 = Gid(4, bytes.fromhex("00" * 10 + "ffff" + "c6124d63"), "RoCE v2")


def choose(*gids: Gid, ethernet: bool = True, index: int | None = None, address: str = "") -> Gid:
    chosen = choose_gid(gids, where="rxe0 port 1", ethernet=ethernet, index=index, address=address)
    assert isinstance(chosen, Gid)
    return chosen


# --- completions ---------------------------------------------------------------------------------------------------


def test_every_status_of_the_header_has_its_sentence() -> None:
    assert set(wc_words.SENTENCES) == set(verbs_device.WC_STATUS)
    # the header counts from 0 without gaps: a status that were forgotten would leave one
    assert sorted(verbs_device.WC_STATUS.values()) == list(range(len(wc_words.SENTENCES)))


@pytest.mark.parametrize("name", sorted(wc_words.SENTENCES))
def test_a_status_is_explained_by_name_number_meaning_and_cause(name: str) -> None:
    value = verbs_device.WC_STATUS[name]
    words = wc_words.explain_status(value)
    assert words.startswith(f"{name} ({value}): ")
    assert "; usual cause: " in words
    assert len(words.split()) > 8


def test_a_status_of_the_future_is_still_a_sentence() -> None:
    assert "newer" in wc_words.explain_status(999)
    assert "newer" in wc_words.explain_event(999)


def test_every_event_that_ends_a_trial_has_a_sentence() -> None:
    assert set(wc_words.EVENT_SENTENCES) == set(verbs_event.EVENTS)


@pytest.mark.parametrize("name", sorted(wc_words.EVENT_SENTENCES))
def test_an_event_is_explained_by_name_number_meaning_and_cause(name: str) -> None:
    value = verbs_event.EVENTS[name]
    words = wc_words.explain_event(value)
    assert words.startswith(f"{name} ({value}): ")
    assert "; usual cause: " in words


# --- GIDs, MTU -----------------------------------------------------------------------------------------------------


def test_routable_comes_before_link_local() -> None:
    assert choose(LINK_LOCAL, GLOBAL) == GLOBAL
    assert choose(LINK_LOCAL, GLOBAL, IPV4) == IPV4
    assert choose(LINK_LOCAL) == LINK_LOCAL


def test_roce_v1_is_never_chosen() -> None:
    assert choose(V1, LINK_LOCAL) == LINK_LOCAL


def test_the_gid_of_the_places_address_comes_first() -> None:
    assert choose(IPV4, OTHER_IPV4, address="198.18.77.99") == OTHER_IPV4
    assert choose(IPV4, GLOBAL, address="2001:2::1") == GLOBAL
    # however it is written
    assert choose(IPV4, GLOBAL, address="2001:0002:0::1") == GLOBAL
    other = GLOBAL._replace(number=5, raw=bytes.fromhex("20010db8" + "00" * 11 + "01"))
    assert choose(IPV4, GLOBAL, other, address="2001:DB8::1") == other
    assert choose(IPV4, GLOBAL, LINK_LOCAL, address="fe80::1%eth1") == LINK_LOCAL
    assert choose(IPV4, OTHER_IPV4, address="::ffff:198.18.77.99") == OTHER_IPV4
    assert choose(LINK_LOCAL, IPV4, address="no address") == IPV4


def test_the_user_may_choose_any_gid() -> None:
    assert choose(LINK_LOCAL, V1, IPV4, index=1) == V1
    with pytest.raises(UsageError, match=r"has no GID 9; its table is 2: 198\.18\.77\.1 \(RoCE v2\)"):
        choose(IPV4, index=9)


@pytest.mark.parametrize(
    ("gids", "ethernet", "kind"), [((V1,), True, "RoCE v2"), ((), True, "RoCE v2"), ((), False, "IB")]
)
def test_no_gid_of_the_wanted_type_is_told(gids: tuple[Gid, ...], ethernet: bool, kind: str) -> None:
    with pytest.raises(MachineError, match=f"rxe0 port 1 has no GID of type {kind}") as caught:
        choose(*gids, ethernet=ethernet)
    assert "ip addr add" in caught.value.remedy


def test_an_mtu_above_the_ports_is_refused() -> None:
    assert choose_mtu(1024, None, "rxe0") == 1024
    assert choose_mtu(4096, 1024, "rxe0") == 1024
    with pytest.raises(UsageError, match="MTU of 1024 bytes, 2048 are asked for"):
        choose_mtu(1024, 2048, "rxe0")


# --- two ends ------------------------------------------------------------------------------------------------------


def end(**more: Any) -> End:
    return End(
        **{
            "path": "rdma-send", "size": 64, "device": "rxe0", "port": 1, "node_guid": "01", "mac": "02:00:00:00:00:01",
            "boot": "b", "rxe": True, "gid": IPV4.raw.hex(), "mtu": 1024, "qpn": 17, "psn": 5, **more,
        }
    )  # fmt: skip


OTHER = {"device": "rxe1", "node_guid": "02", "mac": "02:00:00:00:00:02", "gid": OTHER_IPV4.raw.hex()}


def test_the_smaller_mtu_of_both_ports_holds() -> None:
    assert agree_ends(end(mtu=4096), end(**OTHER, mtu=1024)) == 1024


@pytest.mark.parametrize("same", ["node_guid", "mac", "gid"])
def test_the_short_cut_is_known_by_guid_mac_or_gid(same: str) -> None:
    other = end(**{**OTHER, same: getattr(end(), same)})
    with pytest.raises(UsageError, match="both ends stand on the rxe device rxe0") as caught:
        agree_ends(end(), other)
    assert "device of its own" in caught.value.remedy


def test_equal_names_on_two_machines_and_real_hardware_are_no_short_cut() -> None:
    agree_ends(end(), end(**{**OTHER, "device": "rxe0"}))
    agree_ends(end(rxe=False), end(rxe=False))
    agree_ends(end(), end(boot="another kernel"))


def test_ends_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PeerError, match="the ends do not fit"):
        agree_ends(end(), end(**OTHER, size=128))
    with pytest.raises(PathError, match="GIDs of different kinds"):
        agree_ends(end(), end(**{**OTHER, "gid": LINK_LOCAL.raw.hex()}))


@pytest.mark.parametrize(
    "change",
    [{"qpn": "x"}, {"qpn": 1 << 24}, {"psn": -1}, {"gid": "00"}, {"gid": "zz" * 16}, {"rkey": 1 << 32}, {"mtu": None}],
)
def test_what_the_other_end_says_is_checked(change: dict[str, Any]) -> None:
    good = {name: getattr(end(), name) for name in End.__struct_fields__}
    assert parse_end(good) == end()
    with pytest.raises(PeerError, match="describes no verbs endpoint"):
        parse_end({**good, **change})


# --- devices, limits, libraries ------------------------------------------------------------------------------------


def test_no_device_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs_end, "_module_file", lambda name: True)
    with pytest.raises(MachineError, match="no verbs device") as caught:
        choose_device(Place(), [])
    assert caught.value.remedy.startswith("hwrx rxe up NETDEV")


def test_no_rxe_module_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs_end, "_module_file", lambda name: False)
    monkeypatch.setattr(verbs_end, "MODULE", verbs_end.MODULE.parent / "no_such_module")
    with pytest.raises(MachineError, match="has no module rdma_rxe") as caught:
        choose_device(Place(), [])
    assert "lab/run" in caught.value.remedy


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(MachineError, match="no verbs device 'rxe7'; there are rxe0, rxe1"):
        choose_device(Place(verbs="rxe7"), ["rxe0", "rxe1"])
    with pytest.raises(UsageError, match="several verbs devices"):
        choose_device(Place(), ["rxe0", "rxe1"])
    assert choose_device(Place(), ["mlx5_0"]) == "mlx5_0"


def test_opening_a_device_that_is_not_there_names_verb_and_device() -> None:
    with pytest.raises(MachineError, match="ibv_open_device on no_such_device"):
        verbs_device.Context("no_such_device")


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cython_ext.verbs.verbs_device", None)
    with pytest.raises(MachineError, match="the verbs library cannot be used") as caught:
        paths.open_endpoint(
            Prepare(trial=1, role="client", setting=Setting(path="rdma-send"), here=Place(), there=Place())
        )
    assert "libibverbs1" in caught.value.remedy


@pytest.fixture
def small_memlock() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
    yield 65536
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def test_memory_that_cannot_be_registered_names_the_limit(small_memlock: int) -> None:
    error = verbs_device.verbs_error("ibv_reg_mr of 8388608 bytes", "rxe0", errno.ENOMEM)
    assert isinstance(error, MachineError)
    assert "ibv_reg_mr of 8388608 bytes on rxe0: Cannot allocate memory (ENOMEM)" in str(error)
    assert f"the limit of locked memory is {small_memlock} bytes" in str(error)
    assert "ulimit -l unlimited" in error.remedy


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.EPERM, MachineError, "root"),
        (errno.ENODEV, MachineError, "hwrx rxe up NETDEV"),
        (errno.EOPNOTSUPP, MachineError, "hwrx devices"),
        (errno.ENETUNREACH, PathError, "ip route get"),
        (errno.EINVAL, PathError, ""),
    ],
)
def test_an_errno_becomes_words_and_a_remedy(number: int, kind: type, remedy: str) -> None:
    error = verbs_device.verbs_error("ibv_modify_qp to RTR", "rxe0 port 1 QP 17", number)
    assert type(error) is kind
    assert errno.errorcode[number] in str(error)
    assert remedy in error.remedy


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wait": "epoll"}, "cannot wait by 'epoll'"),
        ({"pattern": "paced"}, "paced needs a rate"),
        ({"path": "rdma-ud", "size": 4097}, "at most the MTU"),
        ({"connect": "cm", "gid_index": 1}, "RDMA-CM chooses the GID by the address"),
        ({"socket_buffer": 4096}, "rdma-send does not read socket_buffer"),
        ({"zerocopy_send": True}, "rdma-send does not read zerocopy_send"),
        ({"path": "udp", "zerocopy_receive": True}, "udp does not read zerocopy_receive in pingpong"),
        ({"path": "tcp", "size": 5000, "zerocopy_receive": True}, "a multiple of 4096"),
        ({"path": "packet-ring", "zerocopy_send": True}, "packet-ring does not read zerocopy_send"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_starts(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        paths.check_setting(Setting(**{"path": "rdma-send", **change}))


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud"])
def test_the_defaults_are_allowed_on_every_path(path: str) -> None:
    paths.check_setting(Setting(path=path))
