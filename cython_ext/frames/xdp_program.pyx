# cython: language_level=3
"""The XDP program that steers one UDP port, or one queue pair of RoCEv2, to an AF_XDP socket: a few BPF instructions.

Everything else (ARP, other ports, other protocols) goes on to the kernel's stack, which stays the machine's.
"""

import struct

# instruction classes, sizes, modes and operations: Documentation/bpf/standardization/instruction-set.rst
LDX_W, LDX_H, LDX_B = 0x61, 0x69, 0x71
LD_IMM64 = 0x18
ALU64_ADD_K, ALU64_MOV_X, ALU64_MOV_K, ALU64_RSH_K = 0x07, 0xBF, 0xB7, 0x77
JMP_GT_X, JMP_NE_K, CALL, EXIT = 0x2D, 0x55, 0x85, 0x95
MAP_FD = 1  # source register of LD_IMM64: the constant is a map's descriptor
R0, R1, R2, R3, R4 = range(5)
REDIRECT_MAP = 51  # bpf_redirect_map, include/uapi/linux/bpf.h
PASS = 2  # XDP_PASS
# struct xdp_md
DATA, DATA_END, QUEUE = 0, 4, 16
# of an Ethernet frame with an IPv4 header of 20 bytes
ETHERTYPE, VERSION, FRAGMENT, PROTOCOL, DESTINATION_PORT, HEADERS = 12, 14, 20, 23, 36, 42
# behind it, of a BTH (InfiniBand volume 1, 9.2): a reserved byte and the number of the queue pair; where the BTH ends
DESTINATION_QP, BTH_END = 46, 54


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, value)


def _swapped(port: int) -> int:
    """A 16-bit number of the frame, as a little-endian load sees it."""
    return (port & 0xFF) << 8 | port >> 8


def steer_port(port: int, sockets: int, qpn: int | None = None) -> bytes:
    """Instructions that send IPv4 UDP to `port` to the socket of the receive queue in the XSKMAP `sockets` (its fd).

    With `qpn`, only packets of RoCEv2 for that queue pair. Without an entry for the queue, and for all other frames,
    the answer is XDP_PASS.
    """
    checks = [
        # r2 = data, r3 = data_end; is there room for the headers?
        _instruction(LDX_W, R2, R1, DATA),
        _instruction(LDX_W, R3, R1, DATA_END),
        _instruction(ALU64_MOV_X, R4, R2),
        _instruction(ALU64_ADD_K, R4, value=HEADERS if qpn is None else BTH_END),
        (JMP_GT_X, R4, R3, 0),
        _instruction(LDX_H, R4, R2, ETHERTYPE),
        (JMP_NE_K, R4, 0, _swapped(0x0800)),
        _instruction(LDX_B, R4, R2, VERSION),
        (JMP_NE_K, R4, 0, 0x45),  # no options
        _instruction(LDX_B, R4, R2, PROTOCOL),
        (JMP_NE_K, R4, 0, 17),
        _instruction(LDX_H, R4, R2, DESTINATION_PORT),
        (JMP_NE_K, R4, 0, _swapped(port)),
    ]
    if qpn is not None:
        checks += [
            _instruction(LDX_W, R4, R2, DESTINATION_QP),
            # without the reserved byte, which came first
            _instruction(ALU64_RSH_K, R4, value=8),
            (JMP_NE_K, R4, 0, int.from_bytes(qpn.to_bytes(3, "big"), "little")),
        ]
    redirect = [
        _instruction(LDX_W, R2, R1, QUEUE),
        _instruction(LD_IMM64, R1, MAP_FD, value=sockets),
        _instruction(0),  # the upper half of the constant
        _instruction(ALU64_MOV_K, R3, value=PASS),
        _instruction(CALL, value=REDIRECT_MAP),
        _instruction(EXIT),
    ]
    away = [_instruction(ALU64_MOV_K, R0, value=PASS), _instruction(EXIT)]
    end = len(checks) + len(redirect)
    program = b""
    for at, check in enumerate(checks):
        if isinstance(check, bytes):
            program += check
        else:
            code, target, source, value = check
            program += _instruction(code, target, source, end - at - 1, value)
    return program + b"".join(redirect) + b"".join(away)
