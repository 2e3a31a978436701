"""What a testbed does not have is refused, so that no run is labelled with what did not hold."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from hwrx import paths
from hwrx.campaign import measuring, walking
from hwrx.cli import main
from hwrx.control.environment import Host
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Setting
from hwrx.control.places import Place
from hwrx.errors import MachineError, UsageError
from hwrx.lab import accelerator
from hwrx.lab.accelerator import Accelerator
from hwrx.lab.boot import kernel_words
from hwrx.lab.vm import Guest
from hwrx.runs import estimate, experiment, guests, planning, testbed, traffic
from hwrx.runs.experiment import Experiment
from hwrx.runs.guests import GuestsBed
from hwrx.runs.hosts import HostsBed
from hwrx.runs.testbed import Wanted
from hwrx.scripting.lab import Lab

if TYPE_CHECKING:
    from hwrx.lab.cable import Cable

DEVICES = ("mlx5_0", "mlx5_1")
SSH = Wanted(peer="ssh:other", peer_address="192.0.2.7")


def asked(**options: Any) -> Experiment:
    return experiment.from_options(**{"paths": ["udp"], "topology": "netns"} | options)


@pytest.mark.parametrize(
    ("options", "wanted", "words"),
    [
        ({"clock": "icount", "topology": "here"}, Wanted(), "icount counts a guest's instructions, and the loopback"),
        ({"clock": "icount", "topology": "hosts"}, SSH, "icount counts .* what --device and --peer name is none"),
        ({"clock": "icount", "topology": "hosts"}, Wanted(devices=DEVICES), "icount counts a guest's instructions"),
        ({"clock": "icount"}, Wanted(here=True), "icount counts a guest's instructions, and this machine is none"),
        ({"clock": "icount", "topology": "pair"}, Wanted(here=True), "icount counts a guest's instructions"),
        ({"kernel": "6.12", "topology": "here"}, Wanted(), "kernel '6.12' is for a guest"),
        ({"kernel": "6.12", "topology": "hosts"}, SSH, "kernel '6.12' is for a guest"),
        ({"kernel": "6.12", "topology": "hosts"}, Wanted(devices=DEVICES), "kernel '6.12' is for a guest"),
        ({"kernel": "6.12", "topology": "pair"}, Wanted(here=True), "kernel '6.12' is for a guest"),
        ({"boot": ["quiet"], "topology": "here"}, Wanted(), "boot is for a guest's kernel, and the loopback device"),
        ({"boot": ["quiet"], "topology": "hosts"}, SSH, "boot is for a guest's kernel"),
        ({"boot": ["quiet"], "topology": "pair"}, Wanted(here=True), "boot is for a guest's kernel"),
        ({"mitigations": "off"}, Wanted(), "mitigations is what a guest is booted with, and this machine is none"),
        ({"path": {"udp": {"init_on_alloc": 0}}}, Wanted(), "init_on_alloc is what a guest is booted with"),
        ({"sweep": {"iommu": ["off", "lazy"]}, "topology": "nic"}, Wanted(here=True), "iommu is what a guest"),
        ({"wire_mtu": 4200, "topology": "here"}, Wanted(), "wire_mtu is for a wire that hwrx puts up"),
        ({"wire_mtu": 4200, "topology": "queues"}, Wanted(), "wire_mtu is for a wire that hwrx puts up"),
        ({"wire_mtu": 4200, "topology": "hosts"}, SSH, "wire_mtu is for a wire that hwrx puts up"),
        ({"wire_mtu": 4200, "topology": "hosts"}, Wanted(devices=DEVICES), "wire_mtu is for a wire"),
        ({}, Wanted(log=pathlib.Path("console.txt")), "--log takes what a guest prints, and this machine is none"),
        ({"topology": "here"}, Wanted(log=pathlib.Path("console.txt")), "--log takes what a guest prints"),
        ({}, SSH, "the topology 'netns' is not put up"),
        ({"topology": "pair"}, Wanted(devices=DEVICES), "the topology 'pair' is not put up"),
        ({"topology": "hosts"}, Wanted(), "'hosts' needs its two ends named"),
        ({"topology": "hosts", "trace": True}, SSH, "the two ends are on two machines"),
        ({"topology": "wire", "clock": "icount"}, Wanted(), "icount counts one guest's instructions"),
        ({"topology": "wire"}, Wanted(here=True), "is between guests, and --here boots none"),
        ({"topology": "wire", "clients": ["../g1"], "servers": ["s"]}, Wanted(), "'../g1' is not the name of a guest"),
        ({"topology": "wire", "clients": ["g[1-70]"], "servers": ["s"]}, Wanted(), "71 guests are more than the 64"),
        (
            {"topology": "hosts"},
            Wanted(devices=DEVICES, peer_address="192.0.2.7"),
            "--peer-address 192.0.2.7 has no meaning",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any], wanted: Wanted, words: str) -> None:
    refused = asked(**options)
    with pytest.raises(UsageError, match=words) as caught:
        testbed.check_wanted(refused, wanted)
    assert caught.value.remedy
    with pytest.raises(UsageError, match=words), testbed.opened_bed(refused, wanted):
        pass


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"topology": "here"}, Wanted()),
        ({"wire_mtu": 4200}, Wanted()),
        ({"wire_mtu": 4200, "topology": "nic", "clock": "icount", "kernel": "6.12"}, Wanted()),
        ({"topology": "pair", "wire_mtu": 4200}, Wanted(here=True)),
        ({"topology": "pair"}, Wanted(log=pathlib.Path("console.txt"))),
        ({"topology": "hosts", "trace": True}, Wanted(devices=DEVICES)),
        ({"topology": "hosts"}, SSH),
        ({"topology": "hosts", "trace": True}, Wanted(peer="netns:blue", peer_address="192.0.2.7")),
    ],
)
def test_what_a_testbed_has_is_taken(options: dict[str, Any], wanted: Wanted) -> None:
    testbed.check_wanted(asked(**options), wanted)


@pytest.mark.parametrize(
    ("options", "wanted", "kvm", "clock"),
    [
        ({"topology": "nic"}, Wanted(), "tcg", "icount"),
        ({"topology": "nic"}, Wanted(), "kvm", "wall"),
        ({"topology": "hosts"}, Wanted(devices=DEVICES), "tcg", "wall"),
        ({"topology": "wire"}, Wanted(), "tcg", "wall"),
        ({"topology": "pair"}, Wanted(here=True), "tcg", "wall"),
        ({"topology": "here"}, Wanted(), "tcg", "wall"),
        ({"topology": "netns"}, Wanted(), "tcg", "wall"),
        ({"topology": "netns", "kernel": "6.12"}, Wanted(), "tcg", "icount"),
    ],
)
def test_the_clock_is_by_what_executes_the_ends(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], wanted: Wanted, kvm: Any, clock: str
) -> None:
    # what this machine's /dev/kvm can do is the one thing that a test cannot choose
    monkeypatch.setattr(accelerator, "remembered_choice", lambda: Accelerator(kvm, "said by the test"))
    settled = testbed.settle_clock(asked(clock="auto", **options), wanted)
    assert settled.clock == clock
    testbed.check_wanted(settled, wanted)
    assert testbed.settle_clock(settled, wanted) is settled


def test_a_writes_receiver_that_would_fill_the_wait_with_looks_is_left_out_with_the_reason() -> None:
    counted = asked(
        paths=["rdma-write", "rdma-write-imm"], topology="nic", clock="icount", patterns=["pingpong", "stream"]
    )
    layout = planning.plan_run(counted, testbed.setting_checker(counted, Wanted()))
    assert [skip.label for skip in layout.skipped] == ["rdma-write 64 B pingpong event"]
    assert "looking at memory alone" in layout.skipped[0].reason
    assert {(s.path, s.pattern) for s in layout.settings} == {
        ("rdma-write", "stream"),
        ("rdma-write-imm", "pingpong"),
        ("rdma-write-imm", "stream"),
    }
    timed = asked(paths=["rdma-write"], topology="nic", waits=["poll"])
    assert not planning.plan_run(timed, testbed.setting_checker(timed, Wanted())).skipped


@pytest.mark.parametrize("topology", ["netns", "router", "queues"])
def test_verbs_are_left_out_where_the_topology_has_no_such_devices(topology: str) -> None:
    """Said before anything boots; of devices that the user names, only they tell."""
    mixed = asked(paths=["udp", "rdma-send"], topology=topology)
    layout = planning.plan_run(mixed, testbed.setting_checker(mixed, Wanted()))
    assert [skip.label for skip in layout.skipped] == ["rdma-send 64 B pingpong event"]
    assert layout.skipped[0].reason == f"rdma-send needs verbs devices, and the topology {topology} has none"
    assert not planning.plan_run(mixed, testbed.setting_checker(mixed, Wanted(devices=DEVICES))).skipped


@pytest.mark.parametrize("topology", ["pair", "netns", "router", "queues"])
@pytest.mark.parametrize(
    ("path", "link", "runs"),
    [
        ("nic-ring", {}, False),
        ("nic-pio", {}, False),
        ("roce-send", {"link": "nic"}, False),
        ("roce-send", {"link": "uio"}, False),
        ("roce-send", {}, True),  # over the kernel's packet ring
        ("roce-send", {"link": "xdp"}, True),
        ("packet-ring", {}, True),
    ],
)
def test_a_path_that_takes_a_nic_is_left_out_where_the_topology_has_none(
    path: str, link: dict[str, str], runs: bool, topology: str
) -> None:
    """Said before anything boots."""
    alone = asked(paths=["udp", path], topology=topology, path={path: link} if link else {})
    layout = planning.plan_run(alone, testbed.setting_checker(alone, Wanted()))
    reason = f"{path} needs NICs that hwrx drives, and the topology {topology} has none"
    assert [skip.reason for skip in layout.skipped] == ([] if runs else [reason])
    if not runs:
        with pytest.raises(UsageError, match=r"no trial that its paths can do.*\n  remedy: --topology nic$"):
            lone = msgspec.structs.replace(alone, paths=[path])
            planning.plan_run(lone, testbed.setting_checker(lone, Wanted()))
    on_nics = msgspec.structs.replace(alone, topology="nic")
    assert not planning.plan_run(on_nics, testbed.setting_checker(on_nics, Wanted())).skipped


def test_our_driver_is_left_out_where_the_users_devices_are_compared() -> None:
    named = asked(paths=["udp", "nic-ring"], topology="hosts")
    layout = planning.plan_run(named, testbed.setting_checker(named, Wanted(devices=DEVICES)))
    assert [skip.label for skip in layout.skipped] == ["nic-ring 64 B pingpong event"]


# --- what a copied byte costs --------------------------------------------------------------------------------------


def test_both_prices_of_a_copy_are_two_guests_in_one_run() -> None:
    both = asked(topology="nic", clock="icount", sweep={"copies_priced": ["byte", "word"]})
    layout = planning.plan_run(both)
    assert planning.boots_of(layout) == [Boot(copies_priced="byte"), Boot(copies_priced="word")]
    assert {trial.setting.copies_priced for trial in layout.trials} == {"byte", "word"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clock": "wall"}, "copies_priced: .* the clock is 'wall'"),
        ({"clock": "icount", "load": [0.5], "patterns": ["paced"]}, "each value has a guest of its own"),
        ({"clock": "icount", "until": {"width": 0.05}}, "each value has a guest of its own"),
    ],
)
def test_a_price_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(topology="nic", sweep={"copies_priced": ["byte", "word"]}, **options)


def test_a_guest_that_does_not_count_has_no_price() -> None:
    with pytest.raises(UsageError, match="clock `icount`"):
        Guest(copies_priced="word")


# --- what a guest is booted with -----------------------------------------------------------------------------------


def test_each_value_of_an_axis_of_the_machine_is_a_guest_and_a_row_that_says_so() -> None:
    swept = asked(
        topology="nic", clock="icount", sweep={"iommu": ["off", "strict"], "init_on_alloc": [0, 1]}, mitigations="off"
    )
    layout = planning.plan_run(swept)
    assert [str(boot) for boot in planning.boots_of(layout)] == [
        f"copies priced by the byte, iommu {iommu}, mitigations off, init_on_alloc {init}"
        for iommu in ("off", "strict")
        for init in (0, 1)
    ]
    recorded = paths.settings_read(layout.settings[0])
    assert (recorded["iommu"], recorded["mitigations"], recorded["init_on_alloc"]) == ("off", "off", 0)
    assert layout.trials[0].label.endswith(
        f"iommu={layout.trials[0].setting.iommu} init_on_alloc=" + str(layout.trials[0].setting.init_on_alloc)
    )


@pytest.mark.parametrize(
    ("boot", "huge", "words"),
    [
        (Boot(), False, ()),
        (Boot(iommu="off"), False, ("intel_iommu=off", "hugepages=64")),
        (Boot(iommu="passthrough"), False, ("intel_iommu=on", "iommu=pt")),
        (Boot(iommu="lazy"), False, ("intel_iommu=on", "iommu=nopt", "iommu.strict=0")),
        (Boot(iommu="strict"), False, ("intel_iommu=on", "iommu=nopt", "iommu.strict=1")),
        (Boot(mitigations="off", init_on_alloc=1), True, ("mitigations=off", "init_on_alloc=1", "hugepages=64")),
    ],
)
def test_the_kernel_is_told_by_its_own_words(boot: Boot, huge: bool, words: tuple[str, ...]) -> None:
    assert kernel_words(boot, huge_pages=huge) == words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iommu": "strict", "topology": "pair"}, "iommu: a guest of the topology 'pair' has none"),
        ({"iommu": "on", "topology": "nic"}, 'setting.iommu: "on" is not allowed'),
        ({"sweep": {"mitigations": ["off", "on"]}}, r'sweep.mitigations\[1\]: "on" is not allowed'),
        ({"init_on_alloc": 2}, "setting.init_on_alloc: 2 is not allowed"),
    ],
)
def test_what_no_guest_can_be_booted_with_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(**options)


def test_several_values_of_an_option_are_an_axis_and_one_is_a_setting(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "asked.toml"
    file.write_text('paths = ["udp"]\ntopology = "nic"\nclock = "icount"\n[sweep]\nmessages = [5, 6]\n')
    options = {"iommu": ["off", "lazy"], "mitigations": ["off"], "copies_priced": None}
    found = experiment.described_experiment(file, dict(options))
    assert found.sweep == {"messages": [5, 6], "iommu": ["off", "lazy"]}
    assert found.setting == {"mitigations": "off"}
    alone = experiment.described_experiment(None, {**options, "paths": ["udp"], "topology": "nic"})
    assert (alone.sweep, alone.setting) == ({"iommu": ["off", "lazy"]}, {"mitigations": "off"})


# --- options win ---------------------------------------------------------------------------------------------------


def test_an_option_wins_over_whatever_the_file_says() -> None:
    file = experiment.build_experiment(
        {
            "name": "file",
            "clock": "icount",
            "topology": "nic",
            "paths": ["udp", "rdma-send"],
            "sizes": [64, 1400],
            "patterns": ["pingpong", "stream"],
            "setting": {"messages": 1000, "warmup": 5},
            "pattern": {"stream": {"messages": 2000, "window": 8}},
            "size": {"1400": {"messages": 3}},
            "path": {"rdma-send": {"messages": 4, "stream": {"messages": 5, "window": 2}}},
            "sweep": {"copies_priced": ["byte", "word"], "messages": [6, 7]},
        },
        source="file",
    )
    settings = planning.plan_run(experiment.override_experiment(file, messages=10, copies_priced="word")).settings
    assert {setting.messages for setting in settings} == {10}
    assert {setting.copies_priced for setting in settings} == {"word"}
    assert {(s.path, s.window) for s in settings if s.pattern == "stream"} == {("udp", 8), ("rdma-send", 2)}
    assert {setting.warmup for setting in settings} == {5}
    assert len(settings) == 8


def test_settings_of_every_shipped_topology_have_an_estimate() -> None:
    for name in ("here", "netns", "pair", "nic", "queues", "wire", "hosts"):
        plan = planning.plan_run(asked(topology=name))
        assert estimate.estimate_run(plan).seconds > 0
        assert "guest" not in estimate.estimate_run(plan, here=True).basis
    assert Setting(path="udp").copies_priced == "byte"


def test_a_wire_between_guests_has_two_of_them_unless_others_are_named() -> None:
    assert traffic.hosts_of(asked(topology="wire")) == ["client", "server"]
    (setting,) = planning.plan_run(asked(topology="wire")).settings
    assert setting.flows == "client>server"
    many = asked(topology="wire", clients=["g[1-2]"], servers=["sink"])
    assert traffic.hosts_of(many) == ["g1", "sink", "g2"]
    assert traffic.hosts_of(asked(topology="wire", setting={"flows": "a<>b"})) == ["a", "b"]
    with pytest.raises(UsageError, match="it is of two ends on one kernel"):
        asked(topology="wire", trace=True)
    with pytest.raises(UsageError, match="one kernel stamps the stages"):
        walking.describe_walk(["udp"], size=64, topology="wire")


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lab", "shell", "netns", "--clock", "icount", "--", "true"], "--clock is for a guest"),
        (["lab", "shell", "pair", "--host", "--kernel", "6.12", "--", "true"], "--kernel is for a guest"),
        (["lab", "shell", "netns", "--cpus", "2", "--", "true"], "--cpus is for a guest"),
        (["lab", "shell", "queues", "--mtu", "4200", "--", "true"], "--mtu is for the wire of pair, netns, router"),
        (["memory", "--guest", "--device", "rxe0"], "--device is of this machine"),
        (["memory", "--kernel", "6.12", "--nic", "eth1"], "--nic is of this machine"),
        (["compare", "--paths", "udp", "--topology", "here", "--clock", "icount", "--dry-run"], "icount counts"),
        (["compare", "--paths", "udp", "--topology", "netns", "--peer", "ssh:x", "--dry-run"], "is not put up"),
        (["walk", "udp", "--here", "--kernel", "6.12"], "kernel '6.12' is for a guest"),
    ],
)
def test_a_command_refuses_what_it_would_not_heed(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "remedy: " in printed


# --- what is counted, and what is not ------------------------------------------------------------------------------


def test_what_only_a_counting_guest_heeds_is_left_away_where_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "name": "both",
        "topology": "nic",
        "clock": "auto",
        "boot": ["init_on_alloc=0"],
        "paths": ["udp"],
        "pattern": {"pingpong": {"rest": 1000, "messages": 5}, "stream": {"settle": 1000}},
        "setting": {"copies_priced": "byte", "warmup": 3},
        "sweep": {"copies_priced": ["byte", "word"]},
    }
    both = experiment.build_experiment(content, source="both")
    monkeypatch.setattr(accelerator, "remembered_choice", lambda: Accelerator("kvm", "said by the test"))
    for timed in (testbed.settle_clock(both, Wanted()), experiment.override_experiment(both, clock="wall")):
        assert (timed.clock, timed.boot, timed.pattern.get("stream", {})) == ("wall", (), {})
        settings = planning.plan_run(timed).settings
        assert [(s.rest, s.copies_priced, s.messages, s.warmup) for s in settings] == [(0, "byte", 5, 3)]
    monkeypatch.setattr(accelerator, "remembered_choice", lambda: Accelerator("tcg", "said by the test"))
    counted = planning.plan_run(testbed.settle_clock(both, Wanted())).settings
    assert [(s.rest, s.copies_priced) for s in counted] == [(1000, "byte"), (1000, "word")]


def test_a_rest_is_refused_where_time_is_measured_and_where_nobody_takes_it() -> None:
    with pytest.raises(UsageError, match="rest: it is about counted instructions, and the clock is 'wall'"):
        asked(setting={"rest": 1000})
    with pytest.raises(UsageError, match="udp does not read rest in stream, only in pingpong"):
        planning.plan_run(asked(topology="nic", clock="icount", patterns=["stream"], setting={"rest": 1000}))


def test_memory_is_asked_for_where_guests_boot_and_not_where_they_are_up_or_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire = asked(topology="wire", clock="wall")
    monkeypatch.setattr(guests, "available_memory", lambda: 100 << 20)
    testbed.check_wanted(wire, Wanted())  # of a comparison in a lab that is up, and of a dry run
    with pytest.raises(MachineError, match="2 guests use some 1024 MiB of memory, and this machine has 100 left"):
        testbed.opened_bed(wire, Wanted()).__enter__()


def bed_of(*names: str) -> GuestsBed:
    """Guests as they are when they are up, but for the machines themselves."""
    made: dict[str, Guest] = {}
    for number, name in enumerate(names, 1):
        made[name] = guest = Guest("wire")
        guest.places = {"client": Place(address=f"192.0.2.{number}", netdev=f"eth{number}", verbs="rxe0")}
    return GuestsBed(made, cast("Cable", None), Boot())


def test_a_lab_says_where_its_guests_live(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab("wire")
    monkeypatch.setattr(lab, "_bed", bed_of("server", "client"))
    assert {role: place.address for role, place in lab.places.items()} == {
        "client": "192.0.2.2",
        "server": "192.0.2.1",
    }
    monkeypatch.setattr(lab, "_bed", bed_of("guest1", "sink"))
    with pytest.raises(
        UsageError, match="none of this lab's guests is the client or the server: they are guest1, sink"
    ):
        lab.places  # noqa: B018 -- it is looked at


def test_whether_packets_are_merged_is_told_of_each_machine_by_itself() -> None:
    """Two machines of three merge packets; the third does not, though another one has a device of that name."""

    def machine(*devices: str) -> dict[str, object]:
        return {"nics": [{"name": name, "offloads": {"generic-receive-offload": True}} for name in devices]}

    bed = bed_of("g1", "g2", "g3")
    manifest = {"machine": machine("eth3"), "host machines": {"g1": machine("eth1"), "g2": machine("eth2"), "g3": {}}}
    found = measuring._find_merging(bed, manifest)
    assert [finding.state for finding in found] == [
        "at g1 eth1 merges or cuts packets (generic-receive-offload)",
        "at g2 eth2 merges or cuts packets (generic-receive-offload)",
    ]
    alike = HostsBed([Host(name=name, reach="local", netdev="eth1", address="192.0.2.1") for name in ("h1", "h2")])
    (both,) = measuring._find_merging(alike, {"host machines": dict.fromkeys(("h1", "h2"), machine("eth1"))})
    assert both.state == "at h1, h2 eth1 merges or cuts packets (generic-receive-offload)"
