"""Where a message lands that a device writes, packet by packet, into the user's own pages.

The device sees a header's page before each of the user's pages: header 0, user 0, header 1, user 1, and so on. A
frame is received as many bytes before a user's page as it has headers: its payload begins with the page. There are two
views of this memory: the frames', as the device has it, in which a frame lies in one piece; and the user's, of the
user's pages alone, in which a message of many packets does.

Frames come first in, first out, so where one lands is a *prediction*, made when its buffer is given to the device. It
is made for one queue pair, from the number of messages that have come, and holds as long as nobody else's frames come
in between. Whoever takes a frame finds out where it lies, and copies it if that is the wrong place. Not to a page that
a device may still write: what was delivered there would be overwritten by the frame that comes next. Such a packet
counts as lost, and from then on nothing more is foretold: what is expected in between does not come.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

cdef enum:
    LANDING_PAGE = 4096


cdef struct Landing:
    char *frames            # the frames' view; NULL: nothing is foretold, and frames lie in the link's own buffers
    size_t size             # bytes of it
    char *user              # the user's view
    uint64_t iova           # where the device sees the frames' view
    uint32_t slots          # messages that have pages of their own; they take turns
    uint32_t pages          # of each
    uint32_t packets        # of each message
    uint32_t first          # bytes of headers of a message's first packet, also where it is the only one,
    uint32_t middle         # of those behind it,
    uint32_t last           # and of the last of several
    uint32_t asides         # frames that are expected with each message and carry none of it: acknowledgements
    bint asides_first       # they come before it
    uint32_t ahead          # buffers that are given to the device and not filled, at most
    uint8_t *armed          # of each user's page whether a device may still write it, or has and nobody has looked
    # the queue pair's part: what comes next
    uint64_t message        # messages that have come whole
    uint32_t packet         # packets that have come of the next one
    uint32_t aside          # asides that have come since the last one
    bint astray             # a message came in front of its place: the sequence is not what was expected
    # the user's part
    uint64_t released       # messages whose pages may be written again


cdef inline char *landed_at(const Landing *landing, const char *payload) noexcept nogil:
    """Where the user sees what lies there in the frames' view; NULL if it is no user's page."""
    cdef size_t at = payload - landing.frames
    # below `frames` it has become a very large number
    if at >= landing.size or not at & LANDING_PAGE:
        return NULL
    return landing.user + (at >> 13 << 12) + (at & (LANDING_PAGE - 1))


cdef inline void has_come(Landing *landing, const char *frame) noexcept nogil:
    """A frame is looked at now: no device writes its page any more."""
    cdef size_t at = frame - landing.frames
    if at < landing.size:
        landing.armed[at >> 13] = 0


cdef inline bint may_be_written(const Landing *landing, const char *to, uint32_t size) noexcept nogil:
    """Whether a device may still write there, in the user's view."""
    cdef size_t at = to - landing.user, pages = landing.size >> 13
    if at >= pages << 12:
        return False
    return memchr(landing.armed + (at >> 12), 1, min(pages, (at + size + LANDING_PAGE - 1) >> 12) - (at >> 12)) != NULL


cdef inline uint64_t next_position(const Landing *landing) noexcept nogil:
    """The place of the next frame in the sequence of all that are expected, asides among them."""
    cdef uint64_t period = landing.packets + landing.asides
    cdef uint64_t at = landing.message * period + (landing.asides if landing.asides_first else 0) + landing.packet
    if landing.packet == 0 and landing.aside < landing.asides:
        # those still to come stand between the last message and the next one; before the first one only if they lead
        at -= landing.asides - landing.aside
    return at


cdef inline char *foretold(Landing *landing, uint64_t position, uint64_t *iova) noexcept nogil:
    """Where the frame of that place is to be received, and where the device sees that; NULL: anywhere.

    A message whose pages the user still has is received anywhere, too; and none where another frame is foretold.
    """
    cdef uint64_t period = landing.packets + landing.asides
    cdef uint64_t message = position // period, at
    cdef uint32_t head
    cdef uint64_t packet = position % period - (landing.asides if landing.asides_first else 0)
    # an aside that leads has become a very large number
    if packet >= landing.packets or message >= landing.released + landing.slots or landing.astray:
        return NULL
    at = message % landing.slots * landing.pages + packet
    if landing.armed[at]:
        return NULL
    landing.armed[at] = 1
    head = landing.first if packet == 0 else landing.last if packet + 1 == landing.packets else landing.middle
    at = at * 2 * LANDING_PAGE + LANDING_PAGE - head
    iova[0] = landing.iova + at
    return landing.frames + at
