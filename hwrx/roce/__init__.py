"""RoCEv2 in user space, Python's side: endpoints with hwrx's own queue pair, and packets taken apart.

with hwrx.roce.endpoint("eth1", "198.18.77.70") as qp:
    qp.connect(line_of_the_other_end)
    qp.post_receive(qp.register(bytearray(4096)))
"""

from __future__ import annotations

from hwrx.roce.datagrams import DatagramEndpoint, datagram_endpoint
from hwrx.roce.endpoints import Endpoint, endpoint
from hwrx.roce.parameters import Parameters, parse_parameters

__all__ = ["DatagramEndpoint", "Endpoint", "Parameters", "datagram_endpoint", "endpoint", "parse_parameters"]
