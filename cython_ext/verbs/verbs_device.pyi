from typing import NamedTuple

from hwrx.errors import HwrxError

WC_STATUS: dict[str, int]
GID_TYPES: dict[int, str]
ODP: dict[str, int]

class OnDemand(NamedTuple):
    implicit: bool
    rc: frozenset[str]
    ud: frozenset[str]

class Port(NamedTuple):
    number: int
    active: bool
    state: str
    ethernet: bool
    mtu: int
    max_message: int
    lid: int
    pkeys: int

class Gid(NamedTuple):
    number: int
    raw: bytes
    type: str
    netdev: str

def verbs_error(verb: str, what: str, error: int) -> HwrxError: ...
def device_names() -> list[str]: ...

class Context:
    name: str
    def __init__(self, name: str) -> None: ...
    @property
    def node_guid(self) -> str: ...
    @property
    def limits(self) -> dict[str, int]: ...
    @property
    def on_demand(self) -> OnDemand: ...
    @property
    def is_rxe(self) -> bool: ...
    def port(self, number: int) -> Port: ...
    def gids(self, number: int) -> list[Gid]: ...
    def close(self) -> None: ...

class ProtectionDomain:
    context: Context
    def __init__(self, context: Context) -> None: ...
    def close(self) -> None: ...
