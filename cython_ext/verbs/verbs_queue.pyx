# cython: language_level=3
"""Completion channels and queues, address handles, queue pairs. A child holds its parents alive.

Each `close()` is idempotent and raises in words where the verb refuses. Close in the reverse order of making: queue
pairs before their queues.
"""

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from cython_ext.headers.infiniband_verbs cimport (
    IBV_QP_ACCESS_FLAGS,
    IBV_QP_AV,
    IBV_QP_DEST_QPN,
    IBV_QP_MAX_DEST_RD_ATOMIC,
    IBV_QP_MAX_QP_RD_ATOMIC,
    IBV_QP_MIN_RNR_TIMER,
    IBV_QP_PATH_MTU,
    IBV_QP_PKEY_INDEX,
    IBV_QP_PORT,
    IBV_QP_QKEY,
    IBV_QP_RETRY_CNT,
    IBV_QP_RNR_RETRY,
    IBV_QP_RQ_PSN,
    IBV_QP_SQ_PSN,
    IBV_QP_STATE,
    IBV_QP_TIMEOUT,
    IBV_QPS_INIT,
    IBV_QPS_RTR,
    IBV_QPS_RTS,
    IBV_QPT_RC,
    IBV_QPT_UD,
    ibv_ah_attr,
    ibv_create_ah,
    ibv_create_comp_channel,
    ibv_create_cq,
    ibv_create_qp,
    ibv_create_srq,
    ibv_destroy_ah,
    ibv_destroy_comp_channel,
    ibv_destroy_cq,
    ibv_destroy_qp,
    ibv_destroy_srq,
    ibv_modify_qp,
    ibv_mtu,
    ibv_qp_attr,
    ibv_qp_init_attr,
    ibv_query_qp,
    ibv_srq_init_attr,
)
from cython_ext.verbs.verbs_device cimport Context, ProtectionDomain

from cython_ext.verbs.verbs_device import verbs_error

# What hwrx.control.queue_pair.QueuePairFields has, and why
TIMEOUT = 16
RETRY_COUNT = 6
RNR_RETRY = 7          # 7 means for ever: a receiver that is slow is no error
MIN_RNR_TIMER = 12     # 0.64 ms (InfiniBand specification, table 45)
QKEY = 0x68777278      # UD: both ends must hold the same; "hwrx"


@cython.no_gc_clear
cdef class CompletionChannel:
    """A file descriptor on which completion events of queues arrive. It keeps its context alive.

    :raises Exception: what `verbs_error` makes of a failure; so do the other classes of this module
    """

    def __cinit__(self, Context context not None):
        self.context = context
        self.ptr = ibv_create_comp_channel(context.ptr)
        if self.ptr == NULL:
            raise verbs_error("ibv_create_comp_channel", context.name, c_errno)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_destroy_comp_channel(self.ptr)

    def close(self):
        """Destroy it; harmless when called twice. Its completion queues must be destroyed before.

        :raises PathError: (EBUSY) while one of them is there
        """
        cdef int error
        if self.ptr != NULL:
            error = ibv_destroy_comp_channel(self.ptr)
            if error:
                raise verbs_error("ibv_destroy_comp_channel", self.context.name, error)
            self.ptr = NULL


@cython.no_gc_clear
cdef class CompletionQueue:
    """Where finished work requests are reported, polled from mapped memory. It keeps its channel alive.

    :param depth: completions that it has room for; one more and the queue is lost (IBV_EVENT_CQ_ERR)
    :param channel: where events are reported when they were asked for; None: nowhere
    """

    def __cinit__(self, Context context not None, int depth, CompletionChannel channel=None):
        self.context = context
        self.channel = channel
        self.ptr = ibv_create_cq(context.ptr, depth, NULL, NULL if channel is None else channel.ptr, 0)
        if self.ptr == NULL:
            raise verbs_error(f"ibv_create_cq of {depth} entries", context.name, c_errno)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_destroy_cq(self.ptr)

    def close(self):
        """Destroy it; harmless when called twice. All its events must have been acknowledged, or this blocks."""
        cdef int error
        if self.ptr != NULL:
            error = ibv_destroy_cq(self.ptr)
            if error:
                raise verbs_error("ibv_destroy_cq", self.context.name, error)
            self.ptr = NULL


cdef int to_peer(ibv_ah_attr *attr, port, int gid_index, const uint8_t[::1] gid, int lid, int traffic_class,
                 int service_level) except -1:
    """The address vector: a global route wherever there are GIDs, which RoCE always needs."""
    if gid.shape[0] != 16:
        raise ValueError("a GID has 16 bytes")
    memset(attr, 0, sizeof(attr[0]))
    attr.is_global = 1
    attr.dlid = 0 if port.ethernet else lid
    attr.port_num = port.number
    memcpy(attr.grh.dgid.raw, &gid[0], 16)
    attr.grh.sgid_index = gid_index
    attr.grh.hop_limit = 64
    attr.grh.traffic_class = <uint8_t> traffic_class
    attr.sl = <uint8_t> service_level
    return 0


@cython.no_gc_clear
cdef class AddressHandle:
    """The way from a port to a peer's GID, for UD. It must outlive every work request that names it (ibv_post_send(3)).

    :param port: a Port
    :param gid_index: entry of our own GID table that sends
    :param gid: the peer's, 16 bytes
    :param lid: the peer's, without meaning on Ethernet
    :param traffic_class, service_level: of the packets: 8 and 4 bits
    :raises ValueError: if the GID has another length
    """

    def __cinit__(self, ProtectionDomain pd not None, port, int gid_index, const uint8_t[::1] gid not None, int lid, *,
                  int traffic_class=0, int service_level=0):
        cdef ibv_ah_attr attr
        to_peer(&attr, port, gid_index, gid, lid, traffic_class, service_level)
        self.pd = pd
        self.ptr = ibv_create_ah(pd.ptr, &attr)
        if self.ptr == NULL:
            raise verbs_error("ibv_create_ah", f"{pd.context.name} port {port.number}", c_errno)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_destroy_ah(self.ptr)

    def close(self):
        """Destroy it; harmless when called twice."""
        cdef int error
        if self.ptr != NULL:
            error = ibv_destroy_ah(self.ptr)
            if error:
                raise verbs_error("ibv_destroy_ah", self.pd.context.name, error)
            self.ptr = NULL


@cython.no_gc_clear
cdef class SharedReceiveQueue:
    """Receive requests that several queue pairs take from: each message takes the oldest one, whichever it came on.

    :param depth: requests that it has room for
    """

    def __cinit__(self, ProtectionDomain pd not None, uint32_t depth):
        cdef ibv_srq_init_attr init
        memset(&init, 0, sizeof(init))
        init.attr.max_wr = depth
        init.attr.max_sge = 1
        self.pd = pd
        self.ptr = ibv_create_srq(pd.ptr, &init)
        if self.ptr == NULL:
            raise verbs_error(f"ibv_create_srq of {depth} requests", pd.context.name, c_errno)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_destroy_srq(self.ptr)

    def close(self):
        """Destroy it; harmless when called twice. Its queue pairs must be destroyed before."""
        cdef int error
        if self.ptr != NULL:
            error = ibv_destroy_srq(self.ptr)
            if error:
                raise verbs_error("ibv_destroy_srq", self.pd.context.name, error)
            self.ptr = NULL


@cython.no_gc_clear
cdef class QueuePair:
    """A queue pair, RC or UD, made in INIT; `connect` takes it to RTS. It keeps domain and queues alive.

    :param port: a Port
    :param datagram: UD instead of RC
    :param sends, receives: how many work requests each queue holds
    :param inline: bytes of a message that shall travel inside its work request; if the device does not take so many,
        none do and `max_inline` is below it
    :param access: what the other end may do (IBV_ACCESS_REMOTE_*)
    :param pkey_index: entry of the port's table of partition keys
    :param shared: where it takes its receive requests from; None: from a queue of its own
    """

    def __cinit__(self, ProtectionDomain pd not None, CompletionQueue send_cq not None,
                  CompletionQueue recv_cq not None, port, *, bint datagram, uint32_t sends, uint32_t receives,
                  uint32_t inline=0, unsigned int access=0, int pkey_index=0,
                  SharedReceiveQueue shared=None):
        cdef ibv_qp_init_attr init
        cdef ibv_qp_attr attr
        cdef int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT
        self.pd = pd
        self.send_cq = send_cq
        self.recv_cq = recv_cq
        self.shared = shared
        self.port = port
        self.datagram = datagram
        # No device attribute tells the limit of inline data: the device is asked by asking for it.
        for wanted in [inline, 0] if inline else [0]:
            memset(&init, 0, sizeof(init))
            init.send_cq = send_cq.ptr
            init.recv_cq = recv_cq.ptr
            init.qp_type = IBV_QPT_UD if datagram else IBV_QPT_RC
            init.cap.max_send_wr = sends
            init.cap.max_recv_wr = receives
            init.srq = NULL if shared is None else shared.ptr
            init.cap.max_send_sge = 1
            init.cap.max_recv_sge = 1
            init.cap.max_inline_data = wanted
            self.ptr = ibv_create_qp(pd.ptr, &init)
            if self.ptr != NULL:
                break
        else:
            raise verbs_error(
                f"ibv_create_qp of {sends} sends and {receives} receives", f"{pd.context.name} port {port.number}",
                c_errno,
            )
        self.max_inline = init.cap.max_inline_data
        memset(&attr, 0, sizeof(attr))
        attr.qp_state = IBV_QPS_INIT
        attr.port_num = port.number
        attr.pkey_index = <uint16_t> pkey_index
        if datagram:
            attr.qkey = QKEY
            mask |= IBV_QP_QKEY
        else:
            attr.qp_access_flags = access
            mask |= IBV_QP_ACCESS_FLAGS
        self.modify(&attr, mask, "INIT")

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_destroy_qp(self.ptr)

    cdef int modify(self, void *attr, int mask, str step) except -1:
        cdef int error = ibv_modify_qp(self.ptr, <ibv_qp_attr *> attr, mask)
        if error:
            where = f"{self.pd.context.name} port {self.port.number} QP {self.ptr.qp_num}"
            raise verbs_error(f"ibv_modify_qp to {step}", where, error)
        return 0

    @property
    def number(self) -> int:
        """The number by which the other end names it."""
        if self.ptr == NULL:
            raise ValueError("the queue pair is closed")
        return self.ptr.qp_num

    def connect(self, *, uint32_t psn, uint32_t remote_psn=0, uint32_t remote_qpn=0, int mtu=1024, int gid_index=0,
                const uint8_t[::1] remote_gid=None, int remote_lid=0, int reads_out=1, int reads_in=1,
                int timeout=TIMEOUT, int retry_count=RETRY_COUNT, int rnr_retry=RNR_RETRY, int traffic_class=0,
                int service_level=0):
        """INIT → RTR → RTS. UD needs `psn` only.

        :param psn, remote_psn: packet sequence numbers that either end begins with, 24 bits
        :param remote_qpn, remote_gid, remote_lid: the peer's queue pair and port
        :param mtu: bytes of payload a packet: 256, 512, … 4096
        :param gid_index: entry of our own GID table that sends
        :param reads_out, reads_in: READs outstanding as requester and as responder
        :param timeout: until an unanswered packet is sent again, 4.096 µs times 2 to this power
        :param retry_count, rnr_retry: how often, for want of an answer and of a receive request; 7 RNR retries mean for
            ever
        :param traffic_class, service_level: of the packets: 8 and 4 bits
        :raises PathError: or MachineError, naming the step
        :raises ValueError: if the queue pair is closed
        """
        cdef ibv_qp_attr attr
        cdef int path_mtu = (<object> mtu).bit_length() - 8  # 256 is 1, 4096 is 5: enum ibv_mtu
        if self.ptr == NULL:
            raise ValueError("the queue pair is closed")
        memset(&attr, 0, sizeof(attr))
        attr.qp_state = IBV_QPS_RTR
        if self.datagram:
            self.modify(&attr, IBV_QP_STATE, "RTR")
        else:
            attr.path_mtu = <ibv_mtu> path_mtu
            attr.dest_qp_num = remote_qpn
            attr.rq_psn = remote_psn
            attr.max_dest_rd_atomic = reads_in
            attr.min_rnr_timer = MIN_RNR_TIMER
            to_peer(&attr.ah_attr, self.port, gid_index, remote_gid, remote_lid, traffic_class, service_level)
            self.modify(
                &attr,
                IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC
                | IBV_QP_MIN_RNR_TIMER,
                "RTR",
            )
        memset(&attr, 0, sizeof(attr))
        attr.qp_state = IBV_QPS_RTS
        attr.sq_psn = psn
        if self.datagram:
            self.modify(&attr, IBV_QP_STATE | IBV_QP_SQ_PSN, "RTS")
            return
        attr.timeout = timeout
        attr.retry_cnt = retry_count
        attr.rnr_retry = rnr_retry
        attr.max_rd_atomic = reads_out
        self.modify(
            &attr,
            IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN
            | IBV_QP_MAX_QP_RD_ATOMIC,
            "RTS",
        )

    def parameters(self) -> dict[str, int]:
        """What the device says that the queue pair has (ibv_query_qp(3)), of what a user may choose.

        :return: by the names of a setting. What packets carry is RC's alone: UD has an address with each request
        :raises PathError: if it does not tell
        :raises ValueError: if the queue pair is closed
        """
        cdef ibv_qp_attr attr
        cdef ibv_qp_init_attr init
        cdef int error
        if self.ptr == NULL:
            raise ValueError("the queue pair is closed")
        memset(&attr, 0, sizeof(attr))
        error = ibv_query_qp(
            self.ptr, &attr,
            IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_AV | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY, &init,
        )
        if error:
            raise verbs_error("ibv_query_qp", f"{self.pd.context.name} QP {self.ptr.qp_num}", error)
        found = {"pkey_index": attr.pkey_index}
        if not self.datagram:
            found.update(
                traffic_class=attr.ah_attr.grh.traffic_class, service_level=attr.ah_attr.sl, ack_timeout=attr.timeout,
                retry_count=attr.retry_cnt, rnr_retry=attr.rnr_retry,
            )
        return found

    def close(self):
        """Destroy it; harmless when called twice. What is under way is lost, and never completes.

        :raises Exception: what `verbs_error` makes of a failure
        """
        cdef int error
        if self.ptr != NULL:
            error = ibv_destroy_qp(self.ptr)
            if error:
                raise verbs_error("ibv_destroy_qp", self.pd.context.name, error)
            self.ptr = NULL
