"""Where the ends of a path are: what a controller says of it, what an agent finds there, and where its thread ran."""

from __future__ import annotations

from msgspec import Struct


class Place(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one end of a path lives: which netdev and address, and which verbs device stands on it."""

    address: str = "127.0.0.1"
    netdev: str | None = None  # sockets are bound to it (SO_BINDTODEVICE)
    verbs: str | None = None  # for example rxe0
    pio: str | None = None  # netdev of an NE2000, for nic-pio
    port: int = 1  # of the verbs device
    cpu: int | None = None  # the endpoint's thread is bound to it; None: wherever the scheduler puts it
    cpus: tuple[int, ...] = ()  # of which that one is chosen; (): of all that the agent may use
    numa: int | None = None  # node of which it is chosen


class Survey(Struct, frozen=True, kw_only=True):
    """What an end's machine has of CPUs, and what its device does to them: see hwrx.machine.placement."""

    boot: str  # of the running kernel: equal only on the same machine
    allowed: list[int]  # CPUs that the agent was started on
    permitted: list[int]  # those that it may be bound to
    online: list[int]
    possible: list[int]
    siblings: dict[int, list[int]] = {}  # by CPU: the threads of its core, itself among them
    nodes: dict[int, int] = {}  # by CPU: its NUMA node
    device: str = ""  # the hardware beneath the place; "" for links of software
    device_node: int | None = None
    irq_cpus: list[int] = []  # that handle the device's interrupts
    interrupts: dict[int, int] = {}  # by CPU: the device's interrupts since boot
    drops: dict[str, int] = {}  # packets that the network device has lost, by its own counters


class Placed(Struct, frozen=True, kw_only=True):
    """Where an end's thread was when its loop had ended, and what was beside it."""

    allowed: list[int]  # CPUs; one: it was bound to it
    ran_on: int
    siblings: list[int] = []  # the other threads of that core
    node: int | None = None
    device: str = ""
    device_node: int | None = None
    irq_cpus: list[int] = []
    features_off: list[str] = []  # of the scheduler: see hwrx.machine.scheduling
