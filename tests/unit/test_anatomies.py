"""Messages that were taken apart, as a run keeps them and as reports and diffs show them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_runs
import msgspec
import pytest

import hwrx
from hwrx.anatomy import model
from hwrx.anatomy.model import ByAddress, Dissection, Handling, Part, Stamp, State
from hwrx.anatomy.stacks import Piece
from hwrx.anatomy.symbols import Function
from hwrx.cli import main
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Setting
from hwrx.errors import StoreError
from hwrx.report import anatomies, diff, diff_text, figures, html, journeys, ledgers, machine_costs, waterfall
from hwrx.report.moved import moved_parts
from hwrx.runs import store
from hwrx.timelines import perfetto

LOOP, RECEIVE = Function("pingpong_client", "cython_ext.loops.pingpong"), Function("udp_rcv", "vmlinux")
STAMPS = [
    Stamp("posted", "there", 0, 0, "user thread"),
    Stamp("udp_rcv", "there", 400, 400, "softirq"),
    Stamp("delivered", "there", 900, 500, "user thread"),
    Stamp("udp_rcv", "back", 400, 400),
]
TO_USER = Handling("receiver", "copy_user_enhanced_fast_string", "vmlinux", 1.0, 0.0)


def made(path: str = "udp", receive: float = 700.0, copies: ByAddress | None = None) -> Dissection:
    parts = [Part("udp_rcv", "vmlinux", "UDP", receive), Part("memcpy", "libc.so.6", "C library", 300.0)]
    return Dissection(
        label=f"{path} 64 B pingpong event", path=path, size=64, whole=False, messages=90, instructions=receive + 300,
        named=1.0, layered=1.0, awake=90, exact=90, beyond=0, halted=0.0, lost=0, parts=parts,
        layers={"UDP": receive, "C library": 300.0}, states=[State(receive + 300, 90, [])],
        pieces=[Piece((LOOP,), 600), Piece((LOOP, RECEIVE), int(2 * receive))], calls=9, unmatched=0,
        stamps=STAMPS, copies=copies,
    )  # fmt: skip


def copies(sender: float = 1.0, in_place: int = 6) -> ByAddress:
    return ByAddress(6, in_place, 5, sender, 1.0, 0.0, 0.0, 0.0, [TO_USER])


def interval(setting: Setting, direction: str, stage: str) -> int:
    return 100


def run_with(root: Path, *found: Dissection, traced: bool = False, **options: Any) -> Path:
    plan = made_runs.layout(**{"paths": ["udp"], "sizes": [64], "repeats": 2, "clock": "icount", **options})
    with store.Writer.create(root, plan, {**made_runs.MANIFEST, "clock": "icount"}) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
            if traced:
                made_runs.trace(writer, trial, interval, lambda setting: 1)
        if found:
            writer.add_document(model.DOCUMENT, model.to_document(found))
    return writer.path


def cells(table: Any) -> list[list[str]]:
    return [[cell[0] for cell in row] for _, row in table.rows]


def test_a_run_keeps_what_was_found_and_gives_it_back(tmp_path: Path) -> None:
    found = [made(copies=copies()), made("tcp")]
    assert model.from_document(json.loads(json.dumps(model.to_document(found)))) == found
    assert journeys.anatomy_of(hwrx.load(run_with(tmp_path, *found))) == found
    assert journeys.anatomy_of(hwrx.load(run_with(tmp_path))) == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"format": 2, "functions": [], "messages": []}, "is of format 2, and this version reads 1"),
        ({}, "is of format None"),
        ({"format": 1, "functions": []}, "is not what a run keeps"),
        ({**model.to_document([made()]), "functions": []}, "is not what a run keeps"),
        ({**model.to_document([made()]), "stacks": []}, "is not what a run keeps"),
    ],
)
def test_what_was_not_kept_by_this_version_is_refused(document: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=words):
        model.from_document(document)
    run = run_with(tmp_path, made())
    (run / model.DOCUMENT).write_text("{}")
    assert journeys.anatomy_of(hwrx.load(run)) == []


def test_layers_stand_below_one_another_and_their_sum_last(tmp_path: Path) -> None:
    run = hwrx.load(run_with(tmp_path, made(), made("tcp", 900.0), paths=["udp", "tcp"]))
    table = anatomies.anatomy_tables(run.summary())[0]
    assert [name for name, _ in table.columns] == ["layer", "udp", "tcp"]
    assert cells(table) == [["UDP", "700", "900"], ["C library", "300", "300"], ["all", "1,000", "1,200"]]
    assert "180 of 180 messages" in table.caption


def test_copies_by_address_stand_beside_those_that_probes_counted(tmp_path: Path) -> None:
    run = hwrx.load(run_with(tmp_path, made(copies=copies()), traced=True))
    (_, table, _) = anatomies.anatomy_tables(run.summary())
    (row,) = cells(table)
    assert row[3:5] == ["1 + 1", "0 + 0"]
    assert row[6] == "6 of 6"
    assert row[7].endswith("+ 1")


def test_stages_stand_beside_what_probes_made_of_them(tmp_path: Path) -> None:
    run = hwrx.load(run_with(tmp_path, made(), traced=True))
    (_, table) = anatomies.anatomy_tables(run.summary())
    assert cells(table) == [
        ["posted", "sender", "0", "0", "0", "+0"],
        ["udp_rcv", "receiver", "400", "400", "100", "-300"],
        ["delivered", "receiver", "500", "900", "100", "-400"],
    ]


def test_where_the_two_ledgers_differ_it_is_said() -> None:
    counted = ledgers.Handled(copied=(1.0, 1.0), passed=(None, None))
    assert anatomies._difference(copies(), counted) == "they agree"
    assert anatomies._difference(copies(sender=2.0), counted) == "they differ: sender's copies"
    assert anatomies._difference(copies(), None) == ""


def test_the_page_has_a_chart_of_each_setting_that_is_a_document_of_its_own(tmp_path: Path) -> None:
    run = hwrx.load(run_with(tmp_path, made()))
    page = html.render_html(run.summary())
    assert "a message and its answer, 2,000 instructions" in page
    drawing = page.split("data:image/svg+xml;base64,")[1].split('"')[0]
    svg = base64.b64decode(drawing).decode()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and svg.count("<rect") == 2 and 'placeholder="find functions"' in svg
    assert "flame" not in html.render_html(hwrx.load(run_with(tmp_path)).summary()).lower()


def test_a_diff_names_the_functions_that_moved(tmp_path: Path) -> None:
    runs = [hwrx.load(run_with(tmp_path, made(receive=receive))) for receive in (700.0, 950.0)]
    found = diff.compare_runs([runs[0]], [runs[1]])
    assert [(each.function, each.layer, each.before, each.after) for each in found.moved] == [
        ("udp_rcv", "UDP", 700.0, 950.0)
    ]
    text = diff_text.to_text(found)
    assert "functions that moved" in text and "+250" in text
    assert json.loads(diff.to_json(found))["moved"][0]["function"] == "udp_rcv"
    same = diff.compare_runs([runs[0]], [hwrx.load(run_with(tmp_path, made()))])
    assert same.moved == [] and "functions that moved" not in diff_text.to_text(same)


def test_the_waterfall_stands_on_the_anatomy_where_a_run_has_it_and_says_so(tmp_path: Path) -> None:
    both = {"paths": ["udp", "tcp"], "traced": True}
    summary = hwrx.load(run_with(tmp_path, made(), **both)).summary()
    found = {(journey.row.path, journey.direction): journey for journey in journeys.stage_journeys(summary)}
    exact = found["udp", "there"]
    assert (exact.source, exact.messages, exact.whole) == ("anatomy", 1, 900.0)
    assert [(step.stage.name, step.actor, step.mean) for step in exact.steps] == [
        ("posted", "user thread", 0.0), ("udp_rcv", "softirq", 400.0), ("delivered", "user thread", 500.0),
    ]  # fmt: skip
    assert ("udp", "back") not in found, "two stamps are no way"
    assert found["tcp", "there"].source == found["tcp", "back"].source == "probes"
    caption = waterfall.waterfall_tables(summary)[-1].caption
    assert "Stages are those that the kernel's probes stamped" in caption
    figure: Any = figures.draw_figure(summary, "waterfall")  # its words below have no public name
    assert "Stages of udp are the anatomy's" in figure._supxlabel.get_text().replace("\n", " ")
    alone = hwrx.load(run_with(tmp_path, made())).summary()  # not traced at all
    assert waterfall.has_waterfall(alone)
    assert "Stages are the anatomy's" in waterfall.waterfall_tables(alone)[0].caption


def test_perfettos_file_stands_on_the_anatomy_and_on_probes_for_the_rest(tmp_path: Path) -> None:
    run = hwrx.load(run_with(tmp_path, made(), paths=["udp", "tcp"], traced=True))
    exact = journeys.exact_messages(run)
    assert perfetto.export_timelines(run, tmp_path / "t.json", 3, exact) > 2
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    stands = {(event["cat"], event["args"]["stands on"]) for event in events if event["ph"] == "X"}
    assert stands == {("udp", "the anatomy"), ("tcp", "probes")}
    lengths = [event["dur"] for event in events if event["ph"] == "X" and event["args"].get("direction") == "there"]
    assert lengths[:2] == [0.4, 0.5]  # 400 and 500 instructions


def test_what_a_word_of_the_machine_adds_stands_by_function_and_as_a_chart(tmp_path: Path) -> None:
    label = "udp 64 B pingpong event iommu={} init_on_alloc={}"
    found = [
        msgspec.structs.replace(made(receive=receive), label=label.format(iommu, init))
        for iommu, init, receive in (("off", 0, 700.0), ("strict", 0, 950.0), ("off", 1, 720.0))
    ]
    first, second = machine_costs.added_by_machine([*found, made("tcp")])
    assert (first.words, first.base) == ("iommu=strict", "iommu=off")
    assert (second.words, second.base) == ("init_on_alloc=1", "init_on_alloc=0")
    assert first.title == "udp, 64 B: iommu=strict +250 against iommu=off"
    run = hwrx.load(run_with(tmp_path, *found))
    table = next(each for each in anatomies.anatomy_tables(run.summary()) if each.name == "machine-1")
    assert cells(table) == [["udp_rcv", "vmlinux", "UDP", "700", "950", "+250"]]
    svg = machine_costs.difference_of(first)
    assert "udp, 64 B, iommu=strict" in svg and "+500 in all" in svg
    assert "What the machine adds: udp, 64 B: iommu=strict" in html.render_html(run.summary())


@pytest.mark.parametrize(("prices", "words"), [(("byte",), "adds the cross-check"), (("byte", "word"), "is the cross")])
def test_each_table_of_copies_says_what_the_emulator_counts_of_one(prices: tuple[Any, ...], words: str) -> None:
    found = [msgspec.structs.replace(made(), boot=Boot(copies_priced=price)) for price in prices]
    said = anatomies._prices(found)
    assert "REP MOVS as an instruction a byte" in said and words in said and "ERMS" in said


def test_a_function_of_one_side_alone_has_moved_too() -> None:
    before = made()
    after = msgspec.structs.replace(before, parts=[*before.parts, Part("nf_hook_slow", "vmlinux", "IP", 80.0)])
    (only,) = moved_parts(before, after)
    assert (only.function, only.before, only.after) == ("nf_hook_slow", 0.0, 80.0)


def test_a_function_and_what_the_compiler_made_of_it_are_one() -> None:
    parts = made().parts
    before = msgspec.structs.replace(
        made(),
        parts=[
            *parts,
            Part("rxe_crc32.isra.0", "rdma_rxe", "RDMA", 996.0),
            Part("work.part.0.cold", "vmlinux", "", 5.0),
            *(
                Part(name, "vmlinux", "", mean)
                for name, mean in (("same", 0.1), ("same.cold", 0.2), ("same.part.1", 0.3))
            ),
        ],
    )
    same = [Part("same", "vmlinux", "", 0.3), Part("same.constprop.0", "vmlinux", "", 0.3)]
    after = msgspec.structs.replace(made(), parts=[*parts, Part("rxe_crc32", "rdma_rxe", "RDMA", 1008.0), *same])
    assert [(each.function, each.before, each.after) for each in moved_parts(before, after)] == [
        ("rxe_crc32", 996.0, 1008.0),
        ("work", 5.0, 0.0),
    ]


def test_charts_of_a_difference_are_coloured_by_what_moved(tmp_path: Path) -> None:
    runs = [run_with(tmp_path, made(receive=receive)) for receive in (700.0, 950.0)]
    picture = tmp_path / "moved.svg"
    assert main(["diff", str(runs[0]), str(runs[1]), "--svg", str(picture)]) == 0
    svg = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    boxes = [each for each in root.iter() if each.tag.endswith("rect")]
    fills = {(each.get("data-name"), (each.get("fill") or "").split(",")[0]) for each in boxes}
    assert fills == {("pingpong_client cython_ext.loops.pingpong", "hsl(0"), ("udp_rcv", "hsl(0")}
    assert "hsl(0,0%,82%)" in svg and "hsl(0,75%,50%)" in svg  # as many as before, and most of all
    assert "before: udp 64 B pingpong event" in svg and "+500 in all" in svg


def test_a_chart_of_what_was_not_taken_apart_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(run_with(tmp_path)) for _ in range(2)]
    assert main(["diff", *runs, "--svg", str(tmp_path / "moved.svg")]) == 2
    assert "no setting was taken apart on both sides" in capsys.readouterr().err
