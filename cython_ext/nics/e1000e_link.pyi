from cython_ext.frames.link import FrameLink
from hwrx.nic.e1000e import E1000e

class RingLink(FrameLink):
    def __init__(self, nic: E1000e) -> None: ...
