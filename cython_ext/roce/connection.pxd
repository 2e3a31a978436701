"""A reliable connection's state: what requester, responder and timer share, and how a packet leaves.

Nothing here does I/O by itself or looks at a clock: packets come parsed, time is handed in, and what is to be sent is
built in the buffers of the `Link` that the connection was given. All memory is there before the first packet.

Two sides share one queue pair (9.7): the requester numbers packets and waits for their acknowledgement, the responder
executes them in the order of their numbers. A packet sequence number (PSN) has 24 bits; every packet of a request takes
one, and a READ as many as its response has packets.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.core.clock cimport now
from cython_ext.frames.landing cimport Landing, landed_at, may_be_written
from cython_ext.frames.link cimport Frame, Gather, Link, SharedHeaders
from cython_ext.frames.stamps cimport Stamps, keep, written_by_device
from cython_ext.headers.infiniband_verbs cimport (
    IBV_QPS_ERR,
    IBV_WC_COMP_SWAP,
    IBV_WC_FETCH_ADD,
    IBV_WC_RDMA_READ,
    IBV_WC_RDMA_WRITE,
    IBV_WC_RECV,
    IBV_WC_SEND,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    IBV_WR_ATOMIC_CMP_AND_SWP,
    IBV_WR_ATOMIC_FETCH_AND_ADD,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_RDMA_WRITE_WITH_IMM,
    ibv_qp_state,
    ibv_wc_opcode,
    ibv_wc_status,
    ibv_wr_opcode,
)
from cython_ext.roce.icrc cimport ICRC, Icrc, crc_update, icrc_begin, icrc_end, icrc_of, write_icrc
from cython_ext.roce.memory_region cimport Regions, find_memory
from cython_ext.roce.packet cimport (
    BTH,
    ETHERNET,
    MIGREQ,
    PSN_MASK,
    AddressVector,
    Packet,
    write_addresses,
    write_bth,
)

cdef enum:
    # what a work request may ask for besides its verb
    SIGNALED = 1            # a completion, also of success
    SOLICITS = 2            # the other end's event
    # of `Completion.flags`
    WITH_IMMEDIATE = 1
    IN_FRAME = 2            # the message stands in the link's frame, which is to be given back with it
    INFINITE_RETRIES = 7    # of an RNR retry count
    ROOM_ASKED = 16         # frames
    FRAMES = 64             # taken at once


cdef struct SendRequest:
    uint64_t wr_id
    uint64_t local          # address of the own memory, and its key
    uint64_t remote
    uint64_t compare
    uint64_t swap           # or what FETCH_ADD adds
    uint32_t lkey
    uint32_t rkey
    uint32_t length         # bytes
    uint32_t immediate
    uint32_t first          # PSN
    uint32_t packets        # how many PSNs it takes
    ibv_wr_opcode verb
    uint8_t flags
    uint32_t like           # not 0: a plain SEND, and those of one number have length, flags and key in common
    bint answered           # its response carries data: a READ or an atomic, which no ACK completes


cdef struct ReceiveRequest:
    uint64_t wr_id
    uint64_t local
    uint32_t lkey
    uint32_t length


cdef struct Completion:
    uint64_t wr_id
    ibv_wc_status status
    ibv_wc_opcode opcode
    uint32_t size           # bytes that came
    uint32_t immediate
    char *data              # of a SEND: where they stand
    uint32_t flags


cdef struct CompletionQueue:
    Completion *ring
    uint32_t mask
    uint32_t head           # free-running: the next to be written
    uint32_t tail           # the next to be polled


cdef struct Response:
    # what the responder still owes: packets of a READ, or the result of an atomic
    uint64_t address        # of a READ: where it goes on
    uint64_t original       # of an atomic: what stood there
    uint32_t key
    uint32_t left           # bytes
    uint32_t psn            # of its next packet
    uint32_t msn
    bint atomic
    bint begun              # a packet of it has gone
    bint again              # answers a duplicate


cdef enum:
    # what is set aside for whoever has the address
    ASIDE = 512             # bytes: the longest is a management datagram of 256 over IPv6
    GSI = 1                 # the queue pair of general management (3.9.5)


cdef struct SavedAtomic:
    uint32_t psn
    bint used
    uint64_t original


cdef struct PlainHeaders:
    # what the packets of one kind and size that come from the other end have in common
    uint64_t[4] words       # bytes 12 to 41: Ethernet's type, IP, with a checksum that is right, UDP
    uint64_t bth            # what BTH_WORD covers
    uint32_t size           # bytes of payload; 0 where nothing was learnt, as of what has none
    uint32_t covered        # and of its padding
    uint32_t register       # of an ACK: the ICRC's in front of the PSN
    uint64_t[2] sum         # of a SEND: the same, as `Icrc` has it


cdef struct PlainSend:
    # what the SENDs of one packet and one size that go have in common
    SharedHeaders shared
    uint64_t[2] sum         # the ICRC's, up to the PSN
    uint32_t like           # what the requests have in common; 0: nothing was made


cdef struct PlainAck:
    # what the ACKs that go over IPv4 have in common
    SharedHeaders shared
    uint32_t register       # the ICRC's, in front of the PSN


cdef struct Counters:
    uint64_t packets        # that came, and were ours
    uint64_t strangers      # from other addresses, to another queue pair, or with another partition key
    uint64_t malformed
    uint64_t wrong_icrc
    uint64_t duplicates     # requests that had been executed
    uint64_t out_of_order   # requests with a number still to come
    uint64_t stale          # responses to what nobody waits for
    uint64_t sent
    uint64_t sent_again
    uint64_t acks_sent
    uint64_t acks_coalesced     # that a later one spared
    uint64_t naks_sent
    uint64_t rnr_naks_sent
    uint64_t acks
    uint64_t naks
    uint64_t rnr_naks
    uint64_t timeouts
    uint64_t lost_responses     # told by a later one
    uint64_t copied             # bytes of payload that our CPU has put into the user's memory
    uint64_t placed             # bytes that the device had put there itself
    uint64_t in_frames          # bytes that were delivered in the frame in which they came
    uint64_t misplaced          # of those copied: they came where something else was foretold
    uint64_t clashes            # packets taken for lost: a device may still write where they belong
    uint64_t gathered           # bytes that the device fetched out of the user's memory
    uint64_t copied_out         # bytes that our CPU carried to the link


cdef struct Connection:
    # --- attributes
    ibv_qp_state state
    uint32_t qpn
    uint32_t remote_qpn
    uint32_t mtu            # bytes of payload of a whole packet
    uint32_t access         # what the other end may do, IBV_ACCESS_…
    uint32_t window         # packets that may be unacknowledged
    uint32_t reads          # READs and atomics that may be outstanding, on either side
    AddressVector way
    const Link *link
    const Gather *gather    # NULL: what is sent is copied into the link's buffers
    Landing *landing        # NULL: nothing lands in place
    const Regions *regions
    uint64_t ends           # the addresses as they stand in a frame that comes over IPv4,
    uint64_t expected_bth   # and the beginning of a SEND ONLY's BTH, of what EXPECTED_BTH covers
    PlainHeaders plain      # of the last one that was taken
    PlainHeaders plain_ack  # and of the last ACK
    PlainSend plain_send
    PlainAck ack
    uint32_t likes          # numbers of `SendRequest.like` that were given out
    Icrc quick
    bint in_frames          # a SEND of one packet is delivered in its frame; the receive request's memory stays unused
    bint kept               # the frame that is looked at is one of those
    bint ack_waits          # an ACK goes with what is sent next, or when nothing more comes
    # --- requester
    SendRequest *sends
    uint32_t send_mask
    uint32_t oldest         # requests by free-running number: the first that is not complete
    uint32_t next           # the one whose packet is sent next
    uint32_t posted         # behind the last
    uint32_t new_psn        # of the next request to be posted
    uint32_t send_psn       # of the next packet to be sent
    uint32_t unacked_psn    # the first that is not acknowledged
    uint32_t highest_psn    # behind the highest ever sent
    uint32_t outstanding    # READs and atomics under way
    uint32_t retry_count
    uint32_t retries_left
    uint32_t rnr_retry
    uint32_t rnr_left
    bint resumed            # after a lost response; until there is progress nothing tells of another one
    CompletionQueue done
    # --- timer; nanoseconds of the clock that is handed in, 0: not running
    int64_t timeout_ns
    int64_t deadline
    int64_t rnr_until
    # --- responder
    ReceiveRequest *receives
    uint32_t receive_mask
    uint32_t receive_oldest
    uint32_t receive_posted
    uint32_t expected_psn
    uint32_t msn            # messages completed
    uint64_t messages       # SENDs and WRITEs that came whole, and READs of our own, without end
    uint16_t message        # IS_SEND or IS_WRITE while one is under way
    uint32_t offset         # bytes of it that have come
    uint64_t write_address
    uint32_t write_key
    uint32_t write_length
    uint64_t reads_answered     # READs that were executed, without end
    uint32_t answered_psn   # the number behind the last READ or atomic that was executed
    uint32_t min_rnr_timer  # code
    bint nak_sent           # for the expected number: nothing is said until that packet comes
    Response *responses
    uint32_t response_room  # a power of two, as all rings have: their numbers run freely
    uint32_t response_head
    uint32_t response_tail
    SavedAtomic *atomics
    uint32_t atomic_room
    uint32_t atomic_next
    bint ack_due
    uint8_t ack_syndrome
    uint32_t ack_psn
    CompletionQueue received
    # --- input
    Frame[FRAMES] frames    # that were taken together
    # --- output
    uint32_t free_frames    # of a link that gathers: for as many it has said, within this call, that it has room
    uint32_t building       # frames that are built in the link, and not handed over yet
    uint32_t building_size
    int link_status         # the first error of the link
    # --- for timelines: when the frame that is looked at was seen, parsed, and its ICRC verified
    Stamps *stamps          # NULL: the stages are not stamped
    uint32_t trial
    int64_t seen
    int64_t parsed
    int64_t verified
    uint32_t landed         # bytes of the message under way that stand where the device wrote them
    Counters counters
    # --- a frame for whoever owns the address: neighbour discovery, and management's queue pair
    uint32_t aside_size     # bytes of it, 0: none
    char[ASIDE] aside


cdef inline uint32_t psn_after(uint32_t psn, uint32_t count) noexcept nogil:
    return (psn + count) & PSN_MASK


cdef inline uint32_t packets_of(uint32_t length, uint32_t mtu) noexcept nogil:
    """How many packets carry a message; one carries nothing (9.7.2)."""
    return 1 if length == 0 else (length - 1) // mtu + 1


cdef inline Completion *complete(CompletionQueue *queue) noexcept nogil:
    """The next completion, all of which is to be filled. There is room: whoever posts has seen to that."""
    cdef Completion *entry = &queue.ring[queue.head & queue.mask]
    queue.head += 1
    return entry


cdef inline ibv_wc_opcode completed_verb(ibv_wr_opcode verb) noexcept nogil:
    if verb == IBV_WR_RDMA_WRITE or verb == IBV_WR_RDMA_WRITE_WITH_IMM:
        return IBV_WC_RDMA_WRITE
    if verb == IBV_WR_RDMA_READ:
        return IBV_WC_RDMA_READ
    if verb == IBV_WR_ATOMIC_CMP_AND_SWP:
        return IBV_WC_COMP_SWAP
    if verb == IBV_WR_ATOMIC_FETCH_AND_ADD:
        return IBV_WC_FETCH_ADD
    return IBV_WC_SEND


cdef inline void complete_oldest(Connection *c, ibv_wc_status status) noexcept nogil:
    """The oldest request is done with. Success that was not to be signalled is silent, an error never."""
    cdef const SendRequest *request = &c.sends[c.oldest & c.send_mask]
    cdef Completion *entry
    if request.flags & SIGNALED or status != IBV_WC_SUCCESS:
        entry = complete(&c.done)
        entry.wr_id = request.wr_id
        entry.status = status
        entry.opcode = completed_verb(request.verb)
        entry.size = request.length
        entry.immediate = entry.flags = 0
        entry.data = NULL
    c.oldest += 1


cdef inline void complete_receive(Connection *c, ibv_wc_status status, ibv_wc_opcode opcode, uint32_t size,
                                  uint32_t immediate, uint32_t flags, char *data=NULL) noexcept nogil:
    """The oldest receive request is done with; the message stands in its memory, or at `data`."""
    cdef Completion *entry = complete(&c.received)
    cdef const ReceiveRequest *request = &c.receives[c.receive_oldest & c.receive_mask]
    entry.wr_id = request.wr_id
    entry.data = data if data != NULL else <char *> request.local
    entry.status = status
    entry.opcode = opcode
    entry.size = size
    entry.immediate = immediate
    entry.flags = flags
    c.receive_oldest += 1


cdef inline void enter_error(Connection *c) noexcept nogil:
    """The error state (10.3.1): what is posted is flushed, and nothing that comes is looked at. A NAK still goes."""
    c.state = IBV_QPS_ERR
    c.deadline = c.rnr_until = 0
    c.message = 0
    while c.oldest != c.posted:
        complete_oldest(c, IBV_WC_WR_FLUSH_ERR)
    c.next = c.posted
    while c.receive_oldest != c.receive_posted:
        complete_receive(c, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0)


# --- input ---------------------------------------------------------------------------------------------------------

cdef enum:
    FORBIDDEN = 0
    PLACED = 1
    CLASHES = -1


cdef inline int place_payload(Connection *c, const Packet *p, uint32_t key, uint64_t address,
                              uint32_t access) noexcept nogil:
    """Put a packet's payload into the user's memory: PLACED, or why nothing is written.

    FORBIDDEN: that memory may not be touched. CLASHES: a device may still write it; the packet is as good as lost.
    The one copy of this side: out of the link's frame, before the frame is given back; none if the device has put it in
    its place. The memory is looked up for each packet anew: the region may have been closed since the last one.
    """
    cdef char *to
    if p.size:
        to = find_memory(c.regions, key, address, p.size, access)
        if to == NULL:
            return FORBIDDEN
        if c.landing != NULL:
            if landed_at(c.landing, p.payload) == to:
                c.counters.placed += p.size
                c.landed += p.size
                return PLACED
            if may_be_written(c.landing, to, p.size):
                c.landing.astray = True
                c.counters.clashes += 1
                return CLASHES
            c.counters.misplaced += p.size
        memcpy(to, p.payload, p.size)
        c.counters.copied += p.size
    return PLACED


cdef inline void stamp_message(Connection *c, const char *data, uint32_t size) noexcept nogil:
    """Its last packet was the one that was expected, and all of it stands there. Only where stages are stamped."""
    if data != NULL:
        keep(c.stamps, data, size, c.trial, True, c.landed, c.seen, c.parsed, now(), c.verified)
    c.landed = 0


# --- output --------------------------------------------------------------------------------------------------------

cdef inline int flush_frames(Connection *c) noexcept nogil:
    """Hand over what is built: 0, or the link's error."""
    cdef int status = 0
    if c.gather != NULL:
        status = c.gather.flush(c.gather.me)
        if status < 0 and c.link_status == 0:
            c.link_status = status
    elif c.building:
        status = c.link.send(c.link.me, c.building, c.building_size)
        c.building = 0
        if status < 0 and c.link_status == 0:
            c.link_status = status
    return status


cdef inline char *next_frame(Connection *c) noexcept nogil:
    """Where the next frame is to be built, or NULL: the link is full, or broken."""
    cdef int room
    if c.gather != NULL:
        # what is appended takes room at once, and nobody else appends meanwhile
        if c.free_frames == 0:
            room = c.link.room(c.link.me, ROOM_ASKED)
            if room <= 0:
                if room < 0 and c.link_status == 0:
                    c.link_status = room
                return NULL
            c.free_frames = <uint32_t> room
        c.free_frames -= 1
        return c.link.buffer(c.link.me, 0)
    room = c.link.room(c.link.me, c.building + 1)
    if room <= <int> c.building:
        # handed over, what is built may go out and make room
        flush_frames(c)
        room = c.link.room(c.link.me, 1)
        if room <= 0:
            if room < 0 and c.link_status == 0:
                c.link_status = room
            return NULL
    return c.link.buffer(c.link.me, c.building)


cdef inline char *begin_packet(Connection *c, char *frame, uint8_t opcode, uint8_t flags, uint32_t psn,
                               uint32_t extended, uint32_t payload) noexcept nogil:
    """Headers up to the BTH; where the extended ones go."""
    cdef uint32_t pad = -payload & 3
    cdef char *bth = write_addresses(frame, &c.way, BTH + extended + payload + pad + ICRC)
    return write_bth(bth, opcode, <uint8_t> (flags | MIGREQ), pad, c.remote_qpn, psn)


cdef inline uint32_t icrc_in_pieces(const Connection *c, const char *frame, const char *at, const char *payload,
                                    uint32_t size, uint32_t pad) noexcept nogil:
    """The ICRC of headers that are built in `frame` up to `at`, a payload somewhere else, and its padding."""
    cdef const char *extended = frame + c.way.size + BTH
    cdef uint32_t nothing = 0, register
    if at == extended and pad == 0:
        return icrc_of(frame + ETHERNET, c.way.network, payload, size)
    register = crc_update(icrc_begin(frame + ETHERNET, c.way.network), extended, at - extended)
    return icrc_end(crc_update(crc_update(register, payload, size), <const char *> &nothing, pad))


cdef inline void gather_packet(Connection *c, char *frame, char *at, const char *payload, uint32_t size) noexcept nogil:
    """Headers, the user's memory and the ICRC as three pieces: the device puts them together."""
    cdef uint32_t pad = -size & 3
    # zeros, and then the ICRC's bytes, the lowest first, on a machine that keeps numbers so
    cdef uint64_t end = <uint64_t> icrc_in_pieces(c, frame, at, payload, size, pad) << 8 * pad
    cdef int status = c.gather.append(c.gather.me, <uint32_t> (at - frame), payload, size, end, pad + ICRC)
    if status < 0:
        if c.link_status == 0:
            c.link_status = status
    elif status:
        c.counters.gathered += size
    else:
        c.counters.copied_out += size
    c.counters.sent += 1


cdef inline void end_packet(Connection *c, char *frame, char *at, const char *payload, uint32_t size) noexcept nogil:
    """The payload, its padding and the ICRC; then the frame is the link's."""
    cdef char *extended = frame + c.way.size + BTH
    cdef uint32_t pad = -size & 3
    if c.gather != NULL:
        gather_packet(c, frame, at, payload, size)
        return
    if size:
        memcpy(at, payload, size)
        c.counters.copied_out += size
    at += size
    while pad:
        at[0] = 0
        at += 1
        pad -= 1
    write_icrc(at, icrc_of(frame + ETHERNET, c.way.network, extended, at - extended))
    hand_over(c, <uint32_t> (at + ICRC - frame))


cdef inline void hand_over(Connection *c, uint32_t whole) noexcept nogil:
    """A frame of so many bytes is built, all of it in the link."""
    cdef int status
    c.counters.sent += 1
    if c.gather != NULL:
        status = c.gather.append(c.gather.me, whole, NULL, 0, 0, 0)
        if status < 0 and c.link_status == 0:
            c.link_status = status
        return
    # A link sends frames of one size at a time. The frame stays where it was built: it is the first after those sent.
    if c.building and c.building_size != whole:
        flush_frames(c)
    c.building += 1
    c.building_size = whole
