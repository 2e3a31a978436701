"""The kernel's sockets as paths: UDP and TCP, and how they wait."""
