"""RoCEv2 in user space, Python's side: captures and live frames taken apart, header by header."""
