from typing import Any

from typing_extensions import Buffer

VERDICT_NAMES: tuple[str, ...]
OPCODES: dict[str, int]
OPCODE_NAMES: dict[int, str]
NAK_NAMES: dict[int, str]
LONGEST_PAYLOAD: int

def syndrome_name(syndrome: int) -> str: ...
def address_vector(
    source_mac: str,
    destination_mac: str,
    source: str,
    destination: str,
    *,
    source_port: int = 0xC000,
    traffic_class: int = 0,
    hop_limit: int = 64,
) -> bytes: ...
def build_packet(
    headers: Buffer,
    opcode: str | int,
    *,
    qpn: int,
    psn: int,
    ack_request: bool = False,
    solicited: bool = False,
    payload: Buffer = b"",
    address: int = 0,
    key: int = 0,
    length: int = 0,
    swap: int = 0,
    compare: int = 0,
    syndrome: int = 0x1F,
    msn: int = 0,
    original: int = 0,
    immediate: int = 0,
    qkey: int = 0,
    source_qpn: int = 0,
    spoil: bool = False,
) -> bytes: ...
def dissect_roce(frame: Buffer) -> dict[str, Any]: ...
