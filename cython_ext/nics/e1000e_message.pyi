from cython_ext.core.pinned import PinnedBuffer
from cython_ext.nics.e1000e_link import RingLink
from cython_ext.nics.interleaved import UserPages

class MessageLink(RingLink):
    def sending_memory(self, size: int) -> PinnedBuffer: ...
    def prepare_landing(
        self,
        *,
        slots: int,
        size: int,
        mtu: int,
        first: int,
        middle: int,
        last: int,
        asides: int = 0,
        asides_first: bool = False,
    ) -> UserPages: ...
    def release_messages(self, count: int) -> None: ...
    def first_arm(self) -> None: ...
