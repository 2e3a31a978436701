from cython_ext.verbs.verbs_path import VerbsTransport
from cython_ext.verbs.verbs_queue import AddressHandle
from hwrx.paths.verbs_end import End

GRH_BYTES: int

def check_datagram(transport: VerbsTransport) -> None: ...
def way_to(transport: VerbsTransport, there: End) -> AddressHandle: ...

class UdSendTransport(VerbsTransport):
    @property
    def slides(self) -> int: ...
