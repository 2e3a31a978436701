from typing_extensions import Buffer

from cython_ext.verbs.verbs_device import Context, Port, ProtectionDomain

TIMEOUT: int
RETRY_COUNT: int
RNR_RETRY: int
MIN_RNR_TIMER: int
QKEY: int

class CompletionChannel:
    context: Context
    def __init__(self, context: Context) -> None: ...
    def close(self) -> None: ...

class CompletionQueue:
    context: Context
    channel: CompletionChannel | None
    def __init__(self, context: Context, depth: int, channel: CompletionChannel | None = None) -> None: ...
    def close(self) -> None: ...

class AddressHandle:
    pd: ProtectionDomain
    def __init__(
        self,
        pd: ProtectionDomain,
        port: Port,
        gid_index: int,
        gid: Buffer,
        lid: int,
        *,
        traffic_class: int = 0,
        service_level: int = 0,
    ) -> None: ...
    def close(self) -> None: ...

class SharedReceiveQueue:
    pd: ProtectionDomain
    def __init__(self, pd: ProtectionDomain, depth: int) -> None: ...
    def close(self) -> None: ...

class QueuePair:
    pd: ProtectionDomain
    send_cq: CompletionQueue
    recv_cq: CompletionQueue
    shared: SharedReceiveQueue | None
    datagram: bool
    max_inline: int
    port: Port
    def __init__(
        self,
        pd: ProtectionDomain,
        send_cq: CompletionQueue,
        recv_cq: CompletionQueue,
        port: Port,
        *,
        datagram: bool,
        sends: int,
        receives: int,
        inline: int = 0,
        access: int = 0,
        pkey_index: int = 0,
        shared: SharedReceiveQueue | None = None,
    ) -> None: ...
    @property
    def number(self) -> int: ...
    def connect(
        self,
        *,
        psn: int,
        remote_psn: int = 0,
        remote_qpn: int = 0,
        mtu: int = 1024,
        gid_index: int = 0,
        remote_gid: Buffer | None = None,
        remote_lid: int = 0,
        reads_out: int = 1,
        reads_in: int = 1,
        timeout: int = 16,
        retry_count: int = 6,
        rnr_retry: int = 7,
        traffic_class: int = 0,
        service_level: int = 0,
    ) -> None: ...
    def parameters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
