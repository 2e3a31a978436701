"""What happens when many packets arrive at once, or more than a machine can take.

`measure_flood(spec)` makes one flood on this kernel and returns a `Flood`: packets an interrupt, a poll and a run of
net_rx_action bring, who runs it, whose every CPU's time is, how long the queues get, where loss begins, how fair
sockets are served. `spec` says what is sent; `scene` sends and reads; `counting` is the kernel's side (BPF); `account`
is the arithmetic.

    from hwrx import flood

    found = flood.measure_flood(flood.Spec(path="udp", burst=20_000, rps=True))
    print(found.polls_of("backlog"), found.contexts, found.loss.unexplained)
"""

from __future__ import annotations

from hwrx.flood.model import Flood, Spec
from hwrx.flood.scene import Bed, flood_wire, measure_flood

__all__ = ["Bed", "Flood", "Spec", "flood_wire", "measure_flood"]
