"""RoCEv2 in user space: the wire format, its CRC, and the reliable connection's two sides, over any link of frames."""
