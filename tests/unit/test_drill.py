"""The rules of the reliable transport: our own queue pair keeps each, and a peer that is broken on purpose does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx.cli import main
from hwrx.drill import model, page, scene
from hwrx.drill.model import Tamper
from hwrx.drill.tampering import FIELDS, Chain, Reader, change_packet, icrc_bytes
from hwrx.errors import StoreError, UsageError

DRILLS = model.every_drill()
WAYS = [
    address_vector("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.1", "192.0.2.2", traffic_class=4, hop_limit=9),
    address_vector("02:00:00:00:00:01", "02:00:00:00:00:02", "2001:db8::1", "2001:db8::2", traffic_class=4),
]


def test_there_are_at_least_forty_rules_in_every_chapter_one() -> None:
    assert len(DRILLS) >= 40
    assert {drill.chapter for drill in DRILLS.values()} == set(model.CHAPTERS)
    assert len({drill.rule for drill in DRILLS.values()}) == len(DRILLS)


@pytest.mark.parametrize("name", DRILLS)
def test_our_own_queue_pair_keeps_the_rule(name: str) -> None:
    result = scene.play_in_memory(DRILLS[name])
    assert result.verdict == "kept", (result.words, result.figures)


@pytest.mark.parametrize("name", DRILLS)
def test_a_peer_that_is_broken_on_purpose_is_seen_to_break_the_rule(name: str) -> None:
    assert DRILLS[name].mutant or DRILLS[name].mutant_peer
    result = scene.play_in_memory(DRILLS[name], mutant=True)
    assert result.verdict == "broken", (result.words, result.figures)


# --- what is done to packets ---------------------------------------------------------------------------------------


def seen(way: bytes, opcode: str = "RC_SEND_ONLY", psn: int = 100, **fields):
    found = Reader(100, 200).read(build_packet(way, opcode, qpn=0x11, psn=psn, **fields))
    assert found is not None
    return found


@pytest.mark.parametrize("way", WAYS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("size", [0, 1, 4, 1023])
def test_the_icrc_of_a_changed_packet_is_right(way: bytes, size: int) -> None:
    frame = build_packet(
        way, "RC_SEND_ONLY", qpn=0x11, psn=5, payload=bytes(range(256)) * 4 if size > 256 else b"x" * size
    )
    assert icrc_bytes(frame) == frame[-4:]


@pytest.mark.parametrize("way", WAYS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("name", "value", "field", "found"),
    [
        ("psn_by", -101, "psn", 0xFFFFFF), ("psn_by", 5, "psn", 105), ("qpn_by", 1, "qpn", 0x12),
        ("opcode", "SEND_LAST", "opcode", "RC_SEND_LAST"), ("opcode", 0x1F, "opcode", "opcode 0x1f"),
        ("pkey", 0x1234, "pkey", 0x1234), ("ack_request", 1, "ack_request", True), ("source_port", 9, "source_port", 9),
    ],
)  # fmt: skip
def test_a_field_is_changed_and_nothing_else(way: bytes, name: str, value, field: str, found: object) -> None:
    before = seen(way, payload=b"12345")
    after = dissect_roce(change_packet(before, Tamper(to="peer", do="change", set={name: value})))
    assert after["icrc"] is True
    expected = {**before.found, field: found}
    kept = (set(after) & set(expected)) - {"verdict"}
    assert {key: after[key] for key in kept} == {key: expected[key] for key in kept}


def test_extended_headers_are_changed_by_what_they_are() -> None:
    write = seen(WAYS[0], "RC_RDMA_WRITE_ONLY", address=2**64 - 1, key=7, length=4, payload=b"1234")
    changes = {"address_by": 3, "key_by": -8, "length": 9}
    found = dissect_roce(change_packet(write, Tamper(to="peer", do="change", set=changes)))
    assert (found["address"], found["key"], found["length"], found["payload"]) == (2, 2**32 - 1, 9, b"1234")
    nak = seen(WAYS[0], "RC_ACKNOWLEDGE", syndrome=0x1F, msn=1)
    found = dissect_roce(change_packet(nak, Tamper(to="peer", do="change", set={"syndrome": 0x60, "msn_by": 2})))
    assert (found["syndrome"], found["msn"]) == (0x60, 3)


@pytest.mark.parametrize("way", WAYS, ids=["IPv4", "IPv6"])
def test_a_packet_is_cut_spoiled_and_lengthened(way: bytes) -> None:
    whole = seen(way, payload=b"1234567890")

    def after(**deed) -> dict:
        return dissect_roce(change_packet(whole, Tamper(to="peer", **deed)))

    assert after(do="cut", bytes=3) | {"pad": 1} == {**whole.found, "payload": b"1234567", "pad": 1}
    assert after(do="cut", bytes=3, icrc="wrong")["icrc"] is False
    assert after(do="cut", bytes=20, icrc="kept")["verdict"] == "not roce"
    assert after(do="spoil") == {**whole.found, "icrc": False}
    assert after(do="flip")["payload"] == b"123456789\xcf" and after(do="flip")["icrc"]
    assert after(do="flip", icrc="kept")["icrc"] is False
    assert after(do="trail") == whole.found


def numbers(frames: list[bytes]) -> list[int]:
    return [int(dissect_roce(frame)["psn"]) - 100 for frame in frames]


@pytest.mark.parametrize(
    ("deed", "order"),
    [
        ({"do": "drop"}, [0, 1, 3, 4]),
        ({"do": "drop", "times": 0}, [0, 1]),
        ({"do": "repeat"}, [0, 1, 2, 2, 3, 4]),
        ({"do": "swap"}, [0, 1, 3, 2, 4]),
        ({"do": "delay", "packets": 2}, [0, 1, 3, 4, 2]),
        ({"do": "copy", "set": {"psn_by": 9}}, [0, 1, 2, 11, 3, 4]),
        ({"do": "copy", "set": {"psn_by": 9}, "before": True}, [0, 1, 11, 2, 3, 4]),
    ],
)
def test_packets_are_lost_repeated_and_put_out_of_order(deed: dict, order: list[int]) -> None:
    for where in ({"nth": 3}, {"psn": 2}, {"message": 3}, {"opcode": "SEND_ONLY|SEND_LAST", "nth": 3}):
        if deed.get("times") == 0 and "nth" not in where:
            continue
        chain = Chain([Tamper(to="peer", **deed, **where)], 100, 200)
        out = [each for number in range(5) for each in chain.carry(seen(WAYS[0], psn=100 + number).frame, 0)]
        assert numbers(out) == order
        assert chain.tampered == (3 if deed.get("times") == 0 else 1)


def test_what_nothing_passes_goes_on_when_its_time_has_come() -> None:
    chain = Chain([Tamper(to="peer", do="delay", packets=9, ms=2.0)], 100, 200)
    assert chain.carry(seen(WAYS[0]).frame, 1000) == []
    assert chain.next_event == 2_001_000
    assert chain.due(2_000_999) == []
    assert numbers(chain.due(2_001_000)) == [0]
    assert chain.next_event is None


def test_packets_are_told_by_what_they_are() -> None:
    reader = Reader(100, 200)
    first = reader.read(build_packet(WAYS[0], "RC_SEND_ONLY", qpn=1, psn=100))
    again = reader.read(build_packet(WAYS[0], "RC_SEND_ONLY", qpn=1, psn=100))
    nak = reader.read(build_packet(WAYS[0], "RC_ACKNOWLEDGE", qpn=1, psn=199, syndrome=0x60))
    assert first and again and nak
    assert [(each.request, each.again, each.psn) for each in (first, again, nak)] == [
        (True, False, 0), (True, True, 0), (False, False, -1),
    ]  # fmt: skip
    assert (first.syndrome, nak.syndrome) == ("", "NAK")
    assert reader.read(bytes(60)) is None


# --- files and words -----------------------------------------------------------------------------------------------

GOOD = (
    'rule = "r"\nsource = "s"\nchapter = "Numbers"\nholds = "acks == 1"\nsays = "{acks}"\n\n[[step]]\nverb = "send"\n'
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("Numbers", "Letters"), "no chapter 'Letters'"),
        (('verb = "send"', 'verb = "spend"'), "a step 'spend'"),
        (('verb = "send"', 'verb = "send"\nsize = 5000'), "of 5000 bytes"),
        (("acks == 1", "acks is 1"), "is no predicate"),
        (('[[step]]\nverb = "send"', ""), "nothing is posted"),
        (("[[step]]", '[[tamper]]\nto = "peer"\ndo = "drop"\nopcode = "SPEND_ONLY"\n\n[[step]]'), "no opcode 'SPEND"),
        (("[[step]]", '[[tamper]]\nto = "peer"\ndo = "eat"\n\n[[step]]'), "eat"),
        (("rule =", "rul ="), "rul"),
    ],
)
def test_a_file_that_is_no_drill_is_refused_in_words(changed: tuple[str, str], words: str, tmp_path: Path) -> None:
    file = tmp_path / "d.toml"
    file.write_text(GOOD)
    assert model.find_drills([str(file)], {})[0].name == "d"
    file.write_text(GOOD.replace(*changed))
    with pytest.raises(UsageError, match=words):
        model.load_drill(file)


def test_a_name_or_a_field_that_there_is_not_is_told() -> None:
    with pytest.raises(UsageError, match="no drill 'gap-is-refused-onc'") as caught:
        model.find_drills(["gap-is-refused-onc"], DRILLS)
    assert "gap-is-refused-once" in caught.value.remedy
    with pytest.raises(UsageError, match="no field 'colour'"):
        change_packet(seen(WAYS[0]), Tamper(to="peer", do="change", set={"colour": 1}))
    with pytest.raises(UsageError, match="no opcode 'SPEND'"):
        change_packet(seen(WAYS[0]), Tamper(to="peer", do="change", set={"opcode": "SPEND"}))
    assert "colour" not in FIELDS


def test_a_rule_whose_packet_never_came_is_not_tested() -> None:
    import msgspec

    never = Tamper(to="peer", do="drop", opcode="RDMA_WRITE_ONLY")
    drill = msgspec.structs.replace(DRILLS["gap-is-refused-once"], tamper=[never])
    result = scene.play_in_memory(drill)
    assert (result.verdict, result.words) == ("not tested", "what the drill needs did not happen: tampered >= 1")


def test_the_command_keeps_a_report_and_makes_the_page(tmp_path: Path, capsys) -> None:
    kept, both = tmp_path / "a.json", tmp_path / "page.md"
    assert main(["drill", "run", "gap-is-refused-once", "wrong-icrc-is-met-by-silence", "--out", str(kept)]) == 0
    assert "hwrx: of 2 rules 2 kept." in capsys.readouterr().out
    assert main(["drill", "run", "gap-is-refused-once", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["figures"]["naks"] == 1
    report["peer"], report["kernel"] = "rxe", "6.1.0"
    report["results"][0] |= {"verdict": "broken", "words": "2 NAKs | <b>"}
    (tmp_path / "b.json").write_text(json.dumps(report))
    assert main(["drill", "page", str(kept), str(tmp_path / "b.json"), "--out", str(both)]) == 0
    text = both.read_text()
    assert "- rxe, Linux 6.1.0: of 1 rules 1 broken." in text
    assert "| kept | **broken** | `gap-is-refused-once` |" in text
    assert "| kept | – | `wrong-icrc-is-met-by-silence` |" in text
    assert "- `gap-is-refused-once` (broken): 2 NAKs \\| \\<b\\>." in text
    with pytest.raises(StoreError, match="not a report"):
        page.load_report(both)


def test_a_broken_rule_is_an_exit_code(tmp_path: Path, capsys) -> None:
    file = tmp_path / "never.toml"
    file.write_text(GOOD.replace("acks == 1", "acks == 7").replace("says", 'needs = "acks >= 1"\nsays'))
    assert main(["drill", "run", str(file)]) == 1
    assert main(["drill", "run", "--kernel", "6.12"]) == 2
    assert main(["drill", "run", "--device", "rxe0"]) == 2
    assert main(["drill", "list"]) == 0
    assert f"{len(DRILLS)} rules" in capsys.readouterr().out
