# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""DatagramTransport: UDP over a link of whole frames, as a path.

What the kernel does between its driver and recvmsg stands here: is it IP and UDP, is it whole, whose is it, where does
the payload begin. The payload is delivered where the link has it. Each of these can be left out, so that its cost is
seen. Messages, credits and finishing are those of the UDP socket (udp.pyx), so a kernel's socket may be the other end.
"""

import ipaddress

from libc.errno cimport ENOBUFS, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from cython_ext.core.clock cimport now
from cython_ext.core.credit cimport (
    FINISH_TRIES,
    FINISHES,
    Control,
    a_control,
    allowed,
    due,
    heed,
    is_whole,
    notice,
    slide,
)
from cython_ext.core.lengths cimport length_of
from cython_ext.core.payload cimport MAGIC_CREDIT, MAGIC_FINISH
from cython_ext.core.transport cimport FINISHED, Delivery, Ops, Transport
from cython_ext.frames.link cimport Frame, FrameLink
from cython_ext.frames.packet cimport (
    CHECK_HEADER,
    CHECK_NOTHING,
    CHECK_PAYLOAD,
    ETHERNET,
    OTHER_ETHERTYPE,
    UDP,
    Datagram,
    PortTable,
    big16,
    find,
    parse,
    write_checksum,
    write_headers,
)
from cython_ext.frames.stamps cimport StageStamps, keep, written_by_device

from cython_ext.frames.arp import resolve_mac
from cython_ext.frames.packet import VERDICT_NAMES, mac_bytes, udp_template
from cython_ext.sockets.receive_room import buffer_for, datagrams_held
from hwrx.errors import PathError

cdef enum:
    ARP = 0x0806
    ARP_SIZE = 42
    ARP_REQUEST = 1


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline int sort_out(DatagramState *s, const Frame *frames, int count, Delivery *out) noexcept nogil:
    """Of `count` frames just taken, keep our messages and heed the controls; refuse the rest. How many messages."""
    cdef int k, verdict, check, messages = 0
    cdef int64_t seen = 0, parsed = 0
    cdef Datagram datagram
    if s.stamps != NULL:
        seen = now()
    for k in range(count):
        check = s.check
        if frames[k].flags & s.vouched_mask == s.vouched:
            check &= ~CHECK_PAYLOAD
        verdict = parse(frames[k].data, frames[k].size, check, &datagram)
        if verdict != UDP:
            s.verdicts[verdict] += 1
            if verdict == OTHER_ETHERTYPE:
                answer_arp(s, &frames[k])
            s.link.refuse(s.link.me, &frames[k])
            continue
        if s.stamps != NULL:
            parsed = now()
        if s.look_up and find(s.ports, &datagram) != s.owner:
            s.nobodys += 1
            s.link.refuse(s.link.me, &frames[k])
            continue
        if heed(&s.credit, datagram.payload, datagram.size):
            s.link.refuse(s.link.me, &frames[k])
            continue
        if s.stamps != NULL and is_whole(&s.credit, datagram.payload, datagram.size):
            keep(s.stamps, datagram.payload, datagram.size, s.credit.trial, check & CHECK_PAYLOAD != 0,
                 written_by_device(s.stamps, datagram.payload, datagram.size), seen, parsed, now())
        if s.credit.granted and is_whole(&s.credit, datagram.payload, datagram.size):
            notice(&s.credit, datagram.payload, datagram.size)
        out[messages].data = datagram.payload
        out[messages].size = datagram.size
        messages += 1
    return messages


cdef void answer_arp(DatagramState *s, const Frame *frame) noexcept nogil:
    """Somebody asks for our address: tell ours. The kernel at the other end of a link forgets, and asks again."""
    cdef const char *arp = frame.data + ETHERNET
    cdef char *answer
    if frame.size < ARP_SIZE or big16(frame.data + 12) != ARP or big16(arp + 6) != ARP_REQUEST:
        return
    if memcmp(arp + 24, s.address, 4) != 0 or s.link.room(s.link.me, 1) <= 0:
        return
    answer = s.link.buffer(s.link.me, 0)
    memcpy(answer, frame.data + 6, 6)
    memcpy(answer + 6, s.mac, 6)
    memcpy(answer + 12, frame.data + 12, 8)      # ethertype, and that it is about Ethernet and IPv4
    answer[20] = 0
    answer[21] = 2                               # reply
    memcpy(answer + 22, s.mac, 6)
    memcpy(answer + 28, s.address, 4)
    memcpy(answer + 32, arp + 8, 10)             # who asked
    s.link.send(s.link.me, 1, ARP_SIZE)
    s.arp_answered += 1


cdef int collect(DatagramState *s, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    """Messages, as soon as there are any: how many; 0 at the deadline (0: after patience), FINISHED or an error."""
    cdef Frame[FRAMES] frames
    cdef int status
    most = min(most, <uint32_t> FRAMES)
    while True:
        status = s.link.take(s.link.me, frames, most)
        if status > 0:
            status = sort_out(s, frames, status, out)
            if status > 0:
                return status
            status = s.link.give(s.link.me, 0)
            if s.credit.finishing and (s.credit.posted or not s.credit.granted):
                return FINISHED
        if status < 0:
            return status
        if deadline == 0:
            deadline = now() + s.credit.patience_ns
        status = s.link.wait(s.link.me, deadline)
        if status <= 0:
            return status


cdef int last_ones(DatagramState *s, Delivery *out, uint32_t most) noexcept nogil:
    """The other end has finished: what is still on its way in a stream, then FINISHED, which is answered."""
    cdef int status, _
    if s.credit.granted:
        status = collect(s, out, most, s.credit.finish_by)
        if status != 0:
            return status
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken)
    return FINISHED


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef DatagramState *s = <DatagramState *> me
    cdef int status
    if s.credit.finishing:
        return last_ones(s, out, most)
    status = collect(s, out, most, 0)
    if status == 0 and s.credit.finishing:
        return last_ones(s, out, most)
    return status


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    return collect(<DatagramState *> me, out, most, deadline)


cdef int release(void *me, uint32_t count) noexcept nogil:
    cdef DatagramState *s = <DatagramState *> me
    cdef int status = s.link.give(s.link.me, count)
    if status >= 0 and due(&s.credit):
        return say(s, MAGIC_CREDIT, s.credit.taken)
    return status


# --- sending -------------------------------------------------------------------------------------------------------

cdef int wait_slot(DatagramState *s, uint32_t most) noexcept nogil:
    """Room in the link for a frame: how much, `most` at most; -ETIMEDOUT where it stays full for the limit."""
    cdef int room = s.link.room(s.link.me, most)
    cdef int64_t since
    if room != 0:
        return room
    since = now()
    while room == 0:
        room = s.link.room(s.link.me, most)
        if room == 0 and now() - since > s.credit.limit_ns:
            return -ETIMEDOUT
    return room


cdef int say(DatagramState *s, uint32_t magic, uint64_t count) noexcept nogil:
    """Send a Control: 0 or -errno."""
    cdef Control control = a_control(&s.credit, magic, count)
    cdef char *frame
    cdef int status = wait_slot(s, 1)
    if status < 0:
        return status
    frame = s.link.buffer(s.link.me, 0)
    memcpy(frame, s.control, HEADERS)
    memcpy(frame + HEADERS, &control, sizeof(Control))
    if s.sum:
        write_checksum(frame, sizeof(Control))
    return s.link.send(s.link.me, 1, HEADERS + sizeof(Control))


cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef DatagramState *s = <DatagramState *> me
    return s.link.buffer(s.link.me, k) + HEADERS


cdef int wait_credit(DatagramState *s) noexcept nogil:
    """Until a credit comes, or it must be taken for lost: 1; FINISHED; or an error."""
    cdef Delivery[1] stray
    cdef int64_t since = now()
    cdef int status
    if s.credit.heard == 0:
        s.credit.heard = since
    while allowed(&s.credit) == 0:
        if s.credit.finishing:
            return FINISHED
        status = one_control(s, stray, now() + s.credit.patience_ns)
        if status < 0:
            return status
        if status == 0:
            if now() - s.credit.heard > s.credit.limit_ns:
                return -ETIMEDOUT
            if now() - since > s.credit.patience_ns:
                slide(&s.credit)
    return 1


cdef int one_control(DatagramState *s, Delivery *stray, int64_t deadline) noexcept nogil:
    """Take whatever comes next, for the control that it may be: 1; 0 at the deadline; or an error.

    The receiver of a stream sends nothing but controls; anything else is dropped.
    """
    cdef Frame[1] frame
    cdef int status = s.link.take(s.link.me, frame, 1)
    if status == 0:
        status = s.link.wait(s.link.me, deadline)
        if status <= 0:
            return status
        status = s.link.take(s.link.me, frame, 1)
    if status > 0:
        status = s.link.give(s.link.me, <uint32_t> sort_out(s, frame, status, stray))
        return status if status < 0 else 1
    return status


cdef int room(void *me) noexcept nogil:
    cdef DatagramState *s = <DatagramState *> me
    cdef int status
    cdef uint32_t most = s.batch
    if s.credit.granted:
        if allowed(&s.credit) == 0:
            status = wait_credit(s)
            if status <= 0:
                return status
        most = <uint32_t> min(<uint64_t> most, allowed(&s.credit))
    status = wait_slot(s, most)
    return min(status, <int> most)


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef DatagramState *s = <DatagramState *> me
    cdef char *frame
    cdef uint32_t k
    cdef int status
    for k in range(count):
        frame = s.link.buffer(s.link.me, k)
        memcpy(frame, s.template, HEADERS)
        if s.sum:
            write_checksum(frame, s.credit.size)
    if s.stamps != NULL:
        s.stamps.sent_bytes += <uint64_t> count * s.credit.size
        s.stamps.summed_bytes += <uint64_t> count * s.credit.size * s.sum
    status = s.link.send(s.link.me, count, HEADERS + s.credit.size)
    if status < 0:
        # a full queue of the kernel's: the frames are lost like others
        if status != -ENOBUFS:
            return status
    s.credit.posted += count
    return <int> count


cdef int post_varying(void *me, uint32_t count) noexcept nogil:
    """As `post`, of messages that differ in size: each has headers of its own, and is handed over alone."""
    cdef DatagramState *s = <DatagramState *> me
    cdef char *frame
    cdef uint32_t size, _
    cdef int status
    for _ in range(count):
        # what was sent before has moved the link on by a frame
        frame = s.link.buffer(s.link.me, 0)
        size = length_of(s.credit.lengths, frame + HEADERS)
        write_headers(frame, s.plain, size)
        if s.sum:
            write_checksum(frame, size)
        if s.stamps != NULL:
            s.stamps.sent_bytes += size
            s.stamps.summed_bytes += size * s.sum
        status = s.link.send(s.link.me, 1, HEADERS + size)
        # a full queue of the kernel's: the frame is lost like others
        if status < 0 and status != -ENOBUFS:
            return status
    s.credit.posted += count
    return <int> count


cdef int finish(void *me) noexcept nogil:
    """Tell the other end that nothing more comes; the sender of a stream waits until it has heard that."""
    cdef DatagramState *s = <DatagramState *> me
    cdef Delivery[1] stray
    cdef int64_t deadline
    cdef int _, status
    if not s.credit.granted or s.credit.posted == 0:
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken if s.credit.granted else s.credit.posted)
        return 0
    for _ in range(FINISH_TRIES):
        if s.credit.finishing or say(s, MAGIC_FINISH, s.credit.posted) < 0:
            return 0
        deadline = now() + s.credit.patience_ns
        while not s.credit.finishing:
            status = one_control(s, stray, deadline)
            if status <= 0:
                break
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class DatagramTransport(Transport):
    """One end of a path of UDP datagrams over whole frames.

    :param link: carries the frames; belongs to this object from now on
    :param address, port: our IPv4 address and UDP port on it
    :param size, window, batch, stream, trial, patience, limit: as UdpTransport has them
    :param verify: which checksums of what arrives are computed: `all`, `header` (IPv4's) or `none`
    :param look_up: whether the port table is asked; without it any datagram is ours
    :param checksum: whether what is sent carries a UDP checksum
    :param notes: go into `chosen()`
    :raises ValueError: if size, window or batch is out of range
    :raises PathError: if a frame of the link is too small for a message
    """

    def __init__(self, FrameLink link not None, *, str address, int port, uint32_t size, uint32_t window,
                 uint32_t batch, bint stream, uint32_t trial, double patience, double limit, str verify="all",
                 bint look_up=True, bint checksum=True, notes=None):
        cdef DatagramState *s = &self.state
        self.link = link
        if size < 1 or batch < 1 or window < 1 or batch > FRAMES:
            raise ValueError(f"size, window and batch are at least 1, and batch at most {FRAMES}")
        if HEADERS + max(size, <uint32_t> sizeof(Control)) > link.largest:
            raise PathError(
                f"a frame of this link carries at most {link.largest - HEADERS} bytes, not {size}",
                remedy="choose a smaller size",
            )
        s.check = {"all": CHECK_HEADER | CHECK_PAYLOAD, "header": CHECK_HEADER, "none": CHECK_NOTHING}[verify]
        s.link = &link.table
        s.vouched_mask = link.checksum_mask
        s.vouched = link.checksum_good
        s.credit.size = self.size = size
        s.credit.lengths = &self.lengths
        s.credit.window = self.window = min(window, max(1, link.frames // 2))
        s.batch = batch
        s.credit.trial = trial
        s.credit.granted = stream
        s.look_up = look_up
        s.sum = checksum
        s.credit.patience_ns = <int64_t> (patience * 1e9)
        s.credit.limit_ns = <int64_t> (limit * 1e9)
        self.address = str(ipaddress.IPv4Address(address))
        self.port = port
        mac = mac_bytes(link.mac)
        memcpy(s.mac, <const char *> mac, 6)
        packed = ipaddress.IPv4Address(address).packed
        memcpy(s.address, <const char *> packed, 4)
        self.table = PortTable()
        s.ports = &self.table.ports
        s.owner = self.table.add(port, local=address)
        self.notes = {
            "verify": verify, "look_up": look_up, "checksum_sent": checksum,
            # on paths of sockets the kernel may leave both to the device
            "checksum_sent_by": "hwrx" if checksum else "nobody",
            "checksum_verified_by": "hwrx" if verify == "all" else "nobody",
            **(notes or {}),
        }
        if verify == "all" and link.checksum_mask:
            self.notes["checksum_verified_by"] = "the kernel or the device where they vouch for it, else hwrx"
        # modulo, pull: no; lossy: yes; blind: no
        self.ops = Ops(s, outgoing, room, post, receive, receive_until, release, finish, 0, False, True, NULL, False)

    def vary(self, sizes):
        """As every transport.

        :param sizes: a table of uint32 bytes
        """
        Transport.vary(self, sizes)
        self.ops.post = post_varying

    def describe(self):
        """Return address, port and mac to send to, and how much of a stream can wait here.

        :return: a dict: `receive_frames` is how many frames can wait; `receive_buffer` is that in the words of a
            socket, bytes of SO_RCVBUF, for one that is the other end
        """
        return {
            "address": self.address,
            "port": self.port,
            "mac": self.link.mac,
            "receive_frames": self.window,
            "receive_buffer": buffer_for(self.window, self.size),
        }

    def connect(self, remote):
        """Build the headers of what is sent. Asks for the other end's MAC if it did not say (a kernel's socket).

        :param remote: what `describe` of the other end returned
        :raises PathError: if nobody answers, or the description is not an address
        """
        cdef DatagramState *s = &self.state
        cdef bytes headers
        cdef char[42] built
        try:
            address, port = str(ipaddress.IPv4Address(remote["address"])), int(remote["port"])
            holds = int(remote["receive_frames"]) if "receive_frames" in remote else (
                datagrams_held(int(remote["receive_buffer"]), self.size))
        except (KeyError, ValueError, TypeError) as error:
            told = remote.get("address", "none was sent")
            raise PathError(f"the other end's address cannot be used: {told}: {error}") from error
        mac = remote.get("mac") or resolve_mac(self.link, self.address, address)
        s.credit.window = self.window = min(self.window, max(1, holds))
        headers = udp_template(self.link.mac, mac, self.address, address, self.port, port)
        write_headers(built, <const char *> headers, self.size)
        memcpy(s.template, built, HEADERS)
        memcpy(s.plain, <const char *> headers, HEADERS)
        write_headers(built, <const char *> headers, sizeof(Control))
        memcpy(s.control, built, HEADERS)
        # from now on datagrams of anybody else are nobody's: the socket is connected
        self.table = PortTable()
        s.ports = &self.table.ports
        s.owner = self.table.add(self.port, local=self.address, remote=address, remote_port=port)
        self.notes["window"] = self.window
        self.notes["peer_mac"] = mac

    def stamp_stages(self, uint64_t first, uint64_t count):
        """From now on stamp the stages of each message. It costs three readings of the clock a message.

        `stamps` has the arrays, and joins `counts()`.

        :param first, count: sequence numbers `first` to `first + count - 1` are kept
        """
        cdef uint64_t address, size
        self.stamps = StageStamps(first, count)
        address, size = self.link.device_memory()
        self.stamps.state.low = <const char *> address
        self.stamps.state.high = <const char *> address + size
        self.state.stamps = &self.stamps.state

    def chosen(self):
        """What was chosen that the user did not say, for the manifest.

        :return: a dict: which checksums are verified and sent, and by whom; whether the port table is asked; the notes
        """
        return dict(self.notes)

    def counts(self) -> dict:
        """Frames by what they were found to be, datagrams that were nobody's, ARP questions answered, slides.

        :return: a dict of whole numbers since this end was made: verdicts (VERDICT_NAMES) that occurred; with stages
            stamped, `stamps.counts()`; and what the link counts
        """
        found = {name: self.state.verdicts[i] for i, name in enumerate(VERDICT_NAMES) if self.state.verdicts[i]}
        return {
            **found, "nobody's": self.state.nobodys, "arp answered": self.state.arp_answered,
            "slides": self.state.credit.slides, **self.link.statistics(),
            **({} if self.stamps is None else self.stamps.counts()),
        }

    def explain(self, int status):
        """As for other paths, with what the link has to say about itself."""
        return "; ".join([Transport.explain(self, status), *self.link.diagnose()])

    def interrupt(self):
        """End the loop: a NIC that is in our hands can then be given back."""
        self.link.abandon()
        return True

    def close(self):
        """Close the link, and with it what carries it: the ring, or the NIC; harmless when called twice."""
        self.link.close()
