"""How far the sender of a stream of datagrams may run ahead, and how either end says that it has finished.

The receiver tells with a Control how far the stream has come; more than a window beyond that the sender does not go. A
UDP socket and UDP over whole frames speak this alike, so that either can be the other's end; verbs UD speaks it, too.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport Lengths, length_of
from cython_ext.core.payload cimport GOOD, MAGIC_CREDIT, MAGIC_FINISH, glance, magic_of, sequence_of

cdef enum:
    FINISHES = 3            # copies of a Control that nobody answers
    FINISH_TRIES = 10       # patiences that a sender waits for the answer to its FINISH


cdef struct Control:
    # What crosses besides messages, in the byte order of the payload
    uint32_t magic          # MAGIC_CREDIT or MAGIC_FINISH
    uint32_t trial
    uint64_t count          # CREDIT: one more than the highest sequence number taken; FINISH: that, or messages posted


cdef struct Credit:
    uint32_t size           # bytes of a message, or of the longest
    const Lengths *lengths  # of each message
    uint32_t trial
    uint32_t window         # messages that the receiver has not credited
    bint granted            # a stream; no other pattern needs credits
    bint finishing          # the other end has said that nothing more comes
    int64_t patience_ns
    int64_t finish_by       # until then stragglers of a stream are waited for
    int64_t limit_ns        # nothing heard for so long is an error
    uint64_t posted
    uint64_t credited       # of these, known to be taken (or given up as lost)
    uint64_t taken          # receiver: one more than the highest sequence number
    uint64_t told           # receiver: `taken` of the last credit sent
    int64_t heard           # sender: when a credit last came
    uint64_t slides         # times that the sender gave up waiting for a credit


cdef inline Control a_control(const Credit *c, uint32_t magic, uint64_t count) noexcept nogil:
    cdef Control control
    control.magic = magic
    control.trial = c.trial
    control.count = count
    return control


cdef inline bint heed(Credit *c, const char *data, uint32_t length) noexcept nogil:
    """Take a Control; False where it is none, or none of this trial."""
    cdef Control control
    if length != sizeof(Control) or magic_of(data) not in (MAGIC_CREDIT, MAGIC_FINISH):
        return False
    memcpy(&control, data, sizeof(Control))
    if control.trial != c.trial:
        return False
    if control.magic == MAGIC_CREDIT:
        if c.credited < control.count <= c.posted:
            c.credited = control.count
        c.heard = now()
    elif not c.finishing:
        c.finishing = True
        c.finish_by = now() + c.patience_ns
    return True


cdef inline void notice(Credit *c, const char *data, uint32_t length) noexcept nogil:
    """How far the stream has come. Messages of fewer than 12 bytes carry only the low half of their number."""
    cdef int64_t step
    if glance(data, length, c.trial) != GOOD:
        return
    if length >= 12:
        step = <int64_t> (sequence_of(data, length) + 1 - c.taken)
    else:
        step = <int32_t> (<uint32_t> sequence_of(data, length) + 1 - <uint32_t> c.taken)
    if step > 0:
        c.taken += <uint64_t> step


cdef inline bint is_whole(const Credit *c, const char *data, uint32_t length) noexcept nogil:
    # what is shorter than a header has bytes behind it that can be read: it lies in a slot
    return length == length_of(c.lengths, data)


cdef inline bint due(Credit *c) noexcept nogil:
    """Whether the sender is to be told now how far the stream has come: after each half of a window."""
    if not c.granted or c.taken - c.told < (c.window + 1) // 2:
        return False
    c.told = c.taken
    return True


cdef inline uint64_t allowed(const Credit *c) noexcept nogil:
    """Messages that may still be sent; 0: the window is out."""
    cdef uint64_t under_way = c.posted - c.credited
    return c.window - under_way if under_way < c.window else 0


cdef inline void slide(Credit *c) noexcept nogil:
    """The credits are lost, and perhaps messages with them: go on."""
    c.credited = c.posted
    c.slides += 1
