from cython_ext.verbs.verbs_queue import QueuePair

class ManagedConnection:
    def __init__(self, address: str, scope: int, listens: bool, limit: float) -> None: ...
    @property
    def port(self) -> int: ...
    def connect(
        self,
        pair: QueuePair,
        *,
        peer: str,
        peer_port: int,
        mtu: int,
        reads_out: int,
        reads_in: int,
        timeout: int,
        retry_count: int,
        rnr_retry: int,
        traffic_class: int,
        service_level: int,
    ) -> None: ...
    def close(self) -> None: ...
