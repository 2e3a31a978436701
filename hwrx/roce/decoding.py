"""A line for a packet of RoCEv2, like tcpdump's, and the same as plain data."""

from __future__ import annotations

from cython_ext.roce.packet import dissect_roce, syndrome_name
from hwrx.roce.captures import CapturedFrame

Decoded = dict[str, object]
ROCE_PORT = 4791


def decode_frame(frame: CapturedFrame) -> Decoded | None:
    """Take a frame apart.

    :param frame: from its Ethernet header on
    :return: None if it is nothing of RoCEv2. Otherwise `verdict` ("roce", or what is wrong); `nanoseconds` since 1970;
        `source`, `destination`, `source_port`; `opcode` by name, `qpn`, `psn`, `pkey`, `pad`, `ack_request`,
        `solicited`; `icrc`, true if it is right; the fields of the extended headers that the opcode has; and
        `payload`, bytes of it. A frame that the capture cut off has a verdict, and lacks what was not captured
    """
    found: Decoded = dissect_roce(frame.data)
    if found["verdict"] == "not roce":
        if frame.length <= len(frame.data) or not _goes_to_roce(frame.data):
            return None
        found = {"verdict": f"cut off by the capture, which has {len(frame.data)} of its {frame.length} bytes"}
    if "payload" in found:
        found["payload"] = len(found["payload"])  # type: ignore[arg-type]
    if "syndrome" in found:
        found["syndrome_name"] = syndrome_name(int(found["syndrome"]))  # type: ignore[call-overload]
    return {"nanoseconds": frame.nanoseconds, "bytes": frame.length, **found}


def _goes_to_roce(data: bytes) -> bool:
    """Whether a frame that was cut off begins as one to RoCE's port; of IPv4 without a tag alone."""
    return data[12:15] == b"\x08\0\x45" and data[23:24] == b"\x11" and data[36:38] == ROCE_PORT.to_bytes(2, "big")


def describe_packet(found: Decoded) -> str:
    """Say in a line what `decode_frame` found: who to whom, opcode, numbers, headers, payload, ICRC."""
    parts = []
    if "source" in found:
        parts.append(f"{found['source']} > {found['destination']}:")
    if "opcode" in found:
        parts.append(f"{found['opcode']}, qp {found['qpn']:#x}, psn {found['psn']}")
    line = " ".join(parts)
    words = [line] if line else []
    words += [text for flag, text in (("ack_request", "ack requested"), ("solicited", "solicited")) if found.get(flag)]
    words += [f"{label} {found[key]:#x}" for key, label in HEXADECIMAL.items() if key in found]
    if "length" in found:
        words.append(f"length {found['length']}")
    if "syndrome_name" in found:
        words += [str(found["syndrome_name"]), f"msn {found['msn']}"]
    if "payload" in found:
        words.append(f"{found['payload']} bytes")
    if "icrc" in found:
        words.append("ICRC right" if found["icrc"] else "ICRC WRONG")
    if found["verdict"] != "roce":
        words.append(str(found["verdict"]).upper() if "cut" not in str(found["verdict"]) else str(found["verdict"]))
    return ", ".join(words)


# fields of the extended headers in the order of the line
HEXADECIMAL = {
    "qkey": "qkey",
    "source_qpn": "from qp",
    "address": "address",
    "key": "key",
    "swap": "swap or add",
    "compare": "compare",
    "original": "original",
    "immediate": "immediate",
}
