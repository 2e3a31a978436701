"""Rules of the reliable transport, each put to a queue pair: what is done to packets, and how the peer must take it."""
