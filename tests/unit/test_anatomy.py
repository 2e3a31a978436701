"""The anatomy's arithmetic: from words of the emulator's plugin to messages, from addresses to names and layers."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from made_recordings import Block, place, recorded

from hwrx.anatomy import building, dissect, flame, layout, stacks, symbols
from hwrx.anatomy.layers import UNKNOWN, layer_of
from hwrx.anatomy.layout import RAN, READS_CLOCK, RECEIVES, SENDS
from hwrx.anatomy.symbols import Function, Symbols
from hwrx.anatomy.trace import Trace
from hwrx.control.messages import Setting
from hwrx.errors import GuestError, MachineError

NOP, REP_STOS, RET, CLOCK, IRET = b"\x90", b"\xf3\x48\xab", b"\xc3", b"\x0f\x31", b"\x48\xcf"


def one_message(between: Sequence[int]) -> list[tuple[int, int]]:
    """Block 0 marks and reads the clock at its second instruction, block 1 at its third; these blocks run between."""
    words = [(RAN, 0), (SENDS, place(0, 0)), (READS_CLOCK, place(0, 1))]
    words += [(RAN, number) for number in between]
    return [*words, (RAN, 1), (RECEIVES, place(1, 0)), (READS_CLOCK, place(1, 2))]


LOOP: list[Block] = [(0x1000, [NOP, CLOCK, NOP, NOP]), (0x2000, [NOP, NOP, CLOCK, NOP])]


def total_of(blocks: Sequence[Block], between: Sequence[int], entries: Sequence[int] = ()) -> int:
    trace = Trace(recorded([*LOOP, *blocks], one_message(between)), np.array(entries, np.uint64))
    assert len(trace) == 1
    (total,) = trace.totals()
    assert trace.count_instructions(np.array([0])).sum() == total
    return int(total)


def test_a_message_is_what_runs_from_one_reading_of_the_clock_to_the_other() -> None:
    assert total_of([], []) == 3 + 2  # the reading itself and what is behind it, and what is before the second one
    assert total_of([(0x3000, [NOP] * 7 + [RET])], [2, 2]) == 5 + 16


def test_of_several_looks_the_last_is_the_one_that_brought_it() -> None:
    look = [(RAN, 1), (RECEIVES, place(1, 0)), (READS_CLOCK, place(1, 2))]
    words = [*one_message([])[:-3], *look, *look, *one_message([])]
    trace = Trace(recorded(LOOP, words))
    assert trace.totals().tolist() == [3 + 4 + 2, 5]


def test_a_message_that_did_not_end_is_none() -> None:
    assert len(Trace(recorded(LOOP, one_message([])[:-1]))) == 0
    assert len(Trace(recorded(LOOP, []))) == 0


def test_an_instruction_across_the_end_of_a_page_counts_once() -> None:
    # QEMU lists it in the first block, with the bytes before the end alone, and begins the second with it
    first = (0x4FFD, [NOP, b"\x0f\x85"])
    assert total_of([first, (0x4FFE, [b"\x0f\x85\x00\x00\x00\x00", RET])], [2, 3]) == 5 + 3
    assert total_of([first, (0x5100, [RET])], [2, 3]) == 5 + 3


def test_a_block_that_a_device_interrupted_counts_as_far_as_it_came() -> None:
    store = b"\x89\x37"
    whole, rest = (0x6000, [NOP, store, RET]), (0x6003, [RET])
    assert total_of([whole, rest], [2, 3]) == 5 + 3
    entry, back = (0xFFFFFFFF81000000, [NOP, NOP]), (0xFFFFFFFF81000100, [NOP, IRET])
    blocks = [whole, rest, entry, back]
    assert total_of(blocks, [2, 4, 5, 3], [entry[0]]) == 5 + 2 + 4 + 1
    assert total_of(blocks, [2, 4, 5, 3]) == 5 + 3 + 4 + 1, "only an entry of the kernel's is an interrupt"
    # one that had run to its end comes back behind it
    assert total_of([*blocks, (0x6005, [NOP])], [2, 4, 5, 6], [entry[0]]) == 5 + 3 + 4 + 1


@pytest.mark.parametrize(
    ("last", "target"),
    [(REP_STOS, 2), (b"\x75\xfc", 1), (b"\xeb\xfc", 1), (b"\x0f\x85\xf8\xff\xff\xff", 1), (b"\xff\xe0", 1)],
    ids=["a repeated one", "jnz", "jmp", "a near jnz", "an indirect jump"],
)
def test_a_loop_within_a_block_counts_each_time(last: bytes, target: int) -> None:
    code = [NOP, b"\x66\x90", last]
    start = 0x7000
    again = start + sum(len(each) for each in code[:target])
    assert total_of([(start, code), (again, code[target:])], [2, 3, 3]) == 5 + 3 + 2 * (3 - target)


def test_where_the_processor_stopped_is_known_of_each_message() -> None:
    blocks = [*LOOP, (0x8000, [NOP, b"\xf4"])]
    trace = Trace(recorded(blocks, [*one_message([2]), *one_message([])]))
    assert trace.meets(dissect.HALT).tolist() == [True, False]


def test_the_kernel_names_its_functions_and_those_of_modules_and_programs() -> None:
    said = """ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000040 t udp_rcv
ffffffff81000080 d no_code
ffffffffc0000000 t veth_xmit\t[veth]
ffffffffc1000000 t bpf_prog_1\t[bpf]
"""
    found = Symbols(symbols.kernel_pieces(said))
    at = np.array(
        [0xFFFFFFFF81000001, 0xFFFFFFFF81000041, 0xFFFFFFFFC0000010, 0xFFFFFFFFC1000000, 0x1000, 0xFFFFFFFFC2000000],
        np.uint64,
    )
    assert [str(found.functions[each]) for each in found.find(at)] == [
        "startup_64", "udp_rcv", "veth_xmit [veth]", "bpf_prog_1 bpf", "no symbol ", "no symbol ",
    ]  # fmt: skip
    with pytest.raises(MachineError, match="names no addresses"):
        symbols.kernel_pieces("0000000000000000 T _text\n")


def test_functions_of_files_are_named_also_those_that_a_stripped_library_has_for_itself() -> None:
    from cython_ext.core import clock

    clock.monotonic_ns()
    found = Symbols(symbols.process_pieces(Path("/proc/self/maps").read_text()))
    libc = ctypes.CDLL(None)

    def address(name: str) -> int:
        return ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0

    def name_at(where: int) -> Function:
        return found.functions[int(found.find(np.array([where], np.uint64))[0])]

    assert name_at(address("recvmmsg") + 3).of == "libc.so.6"
    assert "recvmmsg" in name_at(address("recvmmsg")).name
    own = [function for function in found.functions if function.of == "cython_ext.core.clock"]
    assert {"cost", "monotonic_ns"} <= {function.name.split(".")[0] for function in own}
    assert any(function.name.startswith("static_") and function.of == "libc.so.6" for function in found.functions)


@pytest.mark.parametrize(
    ("name", "of", "layer"),
    [
        ("udp_sendmsg", "vmlinux", "UDP"),
        ("tcp_rcv_established", "vmlinux", "TCP"),
        ("ip_rcv_core", "vmlinux", "IP"),
        ("ip_rcv_finish_core.constprop.0", "vmlinux", "IP"),
        ("copy_user_enhanced_fast_string", "vmlinux", "copy"),
        ("__schedule", "vmlinux", "scheduler"),
        ("veth_xmit", "[veth]", "driver"),
        ("rxe_requester", "[rdma_rxe]", "rxe"),
        ("asm_sysvec_apic_timer_interrupt", "vmlinux", "interrupt"),
        ("entry_SYSCALL_64", "vmlinux", "system call"),
        ("__send", "libc.so.6", "C library"),
        ("answering_server", "cython_ext.loops.pingpong", "program"),
        ("__iommu_dma_unmap", "vmlinux", "IOMMU"),
        ("iommu_pgsize.isra.0", "vmlinux", "IOMMU"),
        ("dma_pte_clear_level", "vmlinux", "IOMMU"),
        ("pci_read_config", "vmlinux", "driver"),
        ("hwrx_icrc_ipv4", "cython_ext.roce.icrc", "checksum"),
        ("nobody_knows_it", "vmlinux", UNKNOWN),
        (symbols.NO_SYMBOL, "", UNKNOWN),
    ],
)
def test_a_function_is_in_its_layer(name: str, of: str, layer: str) -> None:
    assert layer_of(Function(name, of)) == layer


@pytest.mark.parametrize(("version", "api"), [("7.2.22", 1), ("8.2.1", 1), ("9.0.0", 2), ("9.1.0", 3), ("10.0.8", 3)])
def test_the_plugin_is_built_for_the_interface_of_the_emulator(version: str, api: int) -> None:
    assert building.api_of(version) == api


@pytest.mark.parametrize("version", ["4.1.0", "11.0.0", "unknown"])
def test_an_emulator_whose_interface_is_not_known_is_refused_in_words(version: str) -> None:
    with pytest.raises(MachineError, match=f"interface of QEMU {version} is not known") as caught:
        building.api_of(version)
    assert "install a QEMU from 4.2" in caught.value.remedy


def test_what_the_emulator_writes_has_no_name_that_a_kill_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with dissect.unnamed_file() as file:
        assert not list(tmp_path.iterdir())
        Path(f"/proc/self/fd/{file}").write_bytes(b"as QEMU does, which has the descriptor")
        assert os.pread(file, 5, 0) == b"as QE"
    assert not list(tmp_path.iterdir())


def test_the_plugins_file_has_room_for_what_messages_of_that_size_are_made_of() -> None:
    """On kernel 6.1 1,115 messages of rdma-send, 4 KiB, were 81,887,849 words, and one that is followed is 900,000."""
    setting = Setting(path="rdma-send", size=4096, pattern="pingpong", messages=1000, warmup=100, cooldown=16)
    assert dissect.words_for([setting], copies=False) > 1.2 * 81_887_849
    more = dissect.words_for([setting], copies=True) - dissect.words_for([setting], copies=False)
    assert more > 2 * dissect.followed_setting(setting).total * 900_000
    huge = msgspec.structs.replace(setting, size=1 << 20)
    assert dissect.words_for([huge], copies=True) == dissect.MOST_WORDS


@pytest.mark.parametrize(
    ("recorded", "woke", "lost", "first"),
    [
        (15, True, 0, 4),  # a guest's first message wakes the plugin
        (16, False, 0, 5),
        (12, True, 9, 4),  # the file was full: the last ones are not there
        (12, False, 9, 5),
        (16, False, 9, 5),  # it was full later
    ],
)
def test_messages_keep_their_numbers_where_the_file_was_full(recorded: int, woke: bool, lost: int, first: int) -> None:
    setting = Setting(path="udp", size=64, pattern="pingpong", wait="event", warmup=5, messages=10, cooldown=1)
    sequence = np.arange(10, dtype=np.uint32)
    numbers = dissect.number_messages(setting, sequence, recorded, woke=woke, lost=lost)
    assert numbers.tolist() == list(range(first, first + 10))


def test_what_is_no_file_of_the_plugins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="has made no file"):
        layout.read_header(tmp_path / "trace")
    (tmp_path / "trace").write_bytes(bytes(4096))
    with pytest.raises(GuestError, match="not of this version"):
        layout.read_header(tmp_path / "trace")


def written(path: Path, **fields: int) -> Path:
    header: npt.NDArray[np.void] = np.zeros((), layout.HEADER)
    header["magic"] = layout.MAGIC
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.tobytes().ljust(layout.PAGE, b"\0") + np.array([1 << 56 | 7], "u8").tobytes())
    return path


def test_a_file_is_read_and_one_that_was_too_small_for_the_code_is_refused(tmp_path: Path) -> None:
    found = layout.read_words(written(tmp_path / "good", words=1, words_at=layout.PAGE, lost=3))
    assert (found.kinds.tolist(), found.values.tolist(), found.lost) == ([RAN], [7], 3)
    with pytest.raises(GuestError, match="more code than its file has room for"):
        layout.read_words(written(tmp_path / "full", unknown=1))


# --- stacks and charts ---------------------------------------------------------------------------------------------

CALL = b"\xe8\x00\x00\x00\x00"
KERNEL = 0xFFFFFFFF81000000
STACK, OTHER = 0xFFFFC90000003F00, 0xFFFFC90000007F00  # slots on the kernel stacks of two tasks
USER = 0x7FFF00000100


class Story:
    """Blocks that are functions of their own, and what ran: for an Unwinder."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.functions: list[Function] = []
        self.words: list[tuple[int, int]] = []

    def run(self, name: str, last: bytes = NOP, slot: int | None = None) -> Story:
        kernel = not name.islower() or name.startswith(("k_", "asm_", "__switch", "__x86"))
        address = (KERNEL if kernel else 0x400000) + 0x100 * len(self.blocks)
        self.words.append((RAN, len(self.blocks)))
        self.blocks.append((address, [NOP, last]))
        self.functions.append(Function(name, "vmlinux" if kernel else "a.out"))
        if slot is not None:
            kind = layout.CALLS if last == CALL else layout.RETURNS
            self.words.append((kind, slot & ((1 << 56) - 1)))
        return self

    def follow(self) -> tuple[list[str], stacks.Unwinder]:
        recording = recorded(self.blocks, self.words)
        names = [function.name for function in self.functions]
        entries = {self.blocks[names.index(name)][0] for name in names if name.startswith("asm_")}
        owners = np.repeat(np.arange(len(self.functions)), 2)
        unwinder = stacks.Unwinder(recording, owners, self.functions, entries)
        pieces = unwinder.follow(0, len(self.words), np.full(len(self.blocks), 2))
        return [" ".join(function.name for function in piece.stack) for piece in pieces], unwinder


def test_calls_and_returns_make_the_stack() -> None:
    story = (
        Story().run("loop", CALL, USER).run("post", CALL, USER - 16).run("send", RET, USER - 16).run("post", RET, USER)
    )
    said, unwinder = story.run("loop").follow()
    assert said == ["loop", "loop post", "loop post send", "loop post", "loop"]
    assert (unwinder.calls, unwinder.unmatched) == (2, 0)


def test_a_system_call_stands_on_its_caller_and_ends_with_it() -> None:
    story = Story().run("loop", CALL, USER).run("send").run("k_entry", CALL, STACK).run("k_send", RET, STACK)
    said, _ = story.run("k_entry").run("send", RET, USER).run("loop").follow()
    kernel = ["loop send k_entry", "loop send k_entry k_send", "loop send k_entry"]
    assert said == ["loop", "loop send", *kernel, "loop send", "loop"]


def test_an_interrupt_stands_on_what_it_interrupted_and_another_task_has_its_own_stack() -> None:
    story = Story().run("k_idle", CALL, STACK).run("k_nap").run("asm_interrupt", CALL, STACK - 64)
    story.run("k_handle", RET, STACK - 64).run("asm_interrupt", IRET).run("k_nap", CALL, STACK - 64)
    # its first call on the other stack says where we are; the thunk is nobody's frame
    story.run("__switch_to_asm", CALL, OTHER).run("__x86_return_thunk", RET, OTHER).run("k_other", CALL, OTHER)
    said, unwinder = story.run("k_work", RET, OTHER).run("k_other").follow()
    interrupt = "k_idle k_nap asm_interrupt"
    assert said[:5] == ["k_idle", "k_idle k_nap", interrupt, f"{interrupt} k_handle", interrupt]
    assert said[-3:] == ["k_other", "k_other k_work", "k_other"]
    assert unwinder.unmatched == 0


def test_a_return_that_fits_no_call_is_counted() -> None:
    _, unwinder = Story().run("k_some", RET, STACK).run("k_other").follow()
    assert unwinder.unmatched == 1


def test_a_words_that_another_blocks_access_left_is_not_taken_for_a_call() -> None:
    story = Story().run("loop", CALL, USER)
    story.words.insert(1, (layout.CALLS, 0x1234))  # of the block before, by the emulator's mistake
    story.run("post")
    story.words.append((layout.RETURNS, USER))  # it ends with no return
    said, _ = story.run("post").follow()
    assert said == ["loop", "loop post"]


def test_a_chart_has_a_box_for_each_call_in_its_order_and_folds_the_same() -> None:
    a, b, c = (Function(name, "vmlinux") for name in ("udp_rcv", "ip_rcv", "<&>"))
    pieces = [stacks.Piece((a,), 5), stacks.Piece((a, b), 7), stacks.Piece((a, b, c), 1), stacks.Piece((a, b), 2)]
    pieces.append(stacks.Piece((a, c), 3))
    boxes = flame.find_boxes(pieces)
    assert [(box.function.name, box.depth, box.start, box.end, box.own) for box in boxes] == [
        ("udp_rcv", 0, 0, 18, 5), ("ip_rcv", 1, 5, 15, 9), ("<&>", 2, 12, 13, 1), ("<&>", 1, 15, 18, 3),
    ]  # fmt: skip
    drawn = flame.draw_charts([("udp & co", pieces)])
    root = ElementTree.fromstring(drawn)
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "ip_rcv: 10 instructions (55.6 %), 9 of its own; IP" in titles and len(titles) == 4
    assert stacks.fold_pieces("udp", pieces) == (
        "udp;udp_rcv 5\nudp;udp_rcv;ip_rcv 9\nudp;udp_rcv;ip_rcv;<&> 1\nudp;udp_rcv;<&> 3\n"
    )
