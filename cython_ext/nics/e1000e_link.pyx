# cython: language_level=3, cdivision=True
"""RingLink: what `Link` asks for, said in the words of the rings. No copy, no system call."""

from libc.errno cimport EINVAL
from libc.stdint cimport int64_t, uint32_t

from cython_ext.frames.link cimport Frame, FrameLink, Link
from cython_ext.nics.descriptor_ring cimport FRAME_ERRORS_SHIFT, RXD_ERR_L4E, RXD_STAT_L4CS
from cython_ext.nics.e1000e_ring cimport rx_receive, rx_refuse, rx_release, rx_wait
from cython_ext.nics.e1000e_tx cimport tx_buffer, tx_post, tx_room


cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    return <int> rx_receive((<RingsState *> me).rx, out, most)


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    rx_refuse((<RingsState *> me).rx, frame)


cdef int give(void *me, uint32_t count) noexcept nogil:
    rx_release((<RingsState *> me).rx, count)
    return 0


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    return rx_wait((<RingsState *> me).rx, deadline)


cdef int room(void *me, uint32_t most) noexcept nogil:
    return <int> min(tx_room((<RingsState *> me).tx), <uint32_t> SENT_TOGETHER, most)


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    return tx_buffer((<RingsState *> me).tx, k)


cdef int send(void *me, uint32_t count, uint32_t size) noexcept nogil:
    cdef RingsState *s = <RingsState *> me
    cdef uint32_t i
    if count > SENT_TOGETHER:
        return -EINVAL
    for i in range(count):
        s.sizes[i] = size
    tx_post(s.tx, count, s.sizes)
    return 0


cdef class RingLink(FrameLink):
    """The rings of a NIC that hwrx drives, as a link: the NIC writes frames to our buffers and fetches them from there.

    :param nic: a `hwrx.nic.E1000e`, which belongs to this object from now on
    """

    def __init__(self, nic):
        self.nic = nic
        self.rx = nic.rx
        self.tx = nic.tx
        self.state.rx = &self.rx.rx
        self.state.tx = &self.tx.tx
        self.mac = nic.mac
        self.frames = self.rx.count - 1
        self.largest = min(self.rx.stride, self.tx.stride, <uint32_t> 1514)
        # where the driver asked the NIC to look at checksums (RXCSUM): it looked, and found no fault
        self.checksum_mask = RXD_STAT_L4CS | RXD_ERR_L4E << FRAME_ERRORS_SHIFT
        self.checksum_good = RXD_STAT_L4CS
        self.table = Link(&self.state, take, refuse, give, wait, room, buffer, send)

    def statistics(self) -> dict:
        """The ring's own counts, the NIC's that are not 0, and what became of interrupts.

        :return: a dict of whole numbers; {} once the NIC was given back
        """
        if self.rx.closed:
            return {}
        counted = {name: value for name, value in self.nic.statistics().items() if value}
        # names that no count of messages has: both stand in one table
        counted.update({"frame_bytes" if name == "bytes" else name: value for name, value in self.rx.counts.items()})
        interrupt = self.rx.interrupt
        if interrupt is not None:
            counted.update(
                interrupts=interrupt.fired, interrupts_spurious=self.rx.spurious, interrupts_lost=self.rx.lost
            )
        return {**counted, "cpu_copied_bytes": 0, "cpu_sent_bytes": 0}  # the NIC wrote and fetched them all

    def device_memory(self) -> tuple:
        """The ring's buffers, which the NIC alone writes to."""
        return self.rx.buffers.address, len(self.rx.buffers)

    def diagnose(self) -> list:
        """What keeps the NIC from working."""
        return [] if self.rx.closed else self.nic.diagnose()

    def close(self):
        """Stop the NIC and give it back; harmless when called twice.

        The rings, and views of their buffers, end with it: what they hold by then is lost.
        """
        FrameLink.close(self)
        self.nic.close()
