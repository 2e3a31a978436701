# cython: language_level=3
"""RDMA-CM: a queue pair of ours connected by the kernel's connection manager (rdma_cm(7)), not by what crosses a pipe.

Request, reply and ready-to-use travel as management datagrams over the wire that is measured.
The queue pair stays ours: the manager only says what belongs into its attributes (rdma_init_qp_attr(3)), and what the
user chose is put over that.
"""

import errno
import os
import select
import socket
import time

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from cython_ext.headers.infiniband_verbs cimport (
    IBV_QPS_RTR,
    IBV_QPS_RTS,
    ibv_get_device_name,
    ibv_mtu,
    ibv_qp_attr,
    ibv_qp_state,
)
from cython_ext.headers.rdma_cma cimport (
    AF_INET,
    AF_INET6,
    RDMA_CM_EVENT_ADDR_RESOLVED,
    RDMA_CM_EVENT_CONNECT_REQUEST,
    RDMA_CM_EVENT_CONNECT_RESPONSE,
    RDMA_CM_EVENT_ESTABLISHED,
    RDMA_CM_EVENT_ROUTE_RESOLVED,
    RDMA_PS_TCP,
    htons,
    ntohs,
    rdma_accept,
    rdma_ack_cm_event,
    rdma_bind_addr,
    rdma_cm_event,
    rdma_cm_event_type,
    rdma_cm_id,
    rdma_conn_param,
    rdma_connect,
    rdma_create_event_channel,
    rdma_create_id,
    rdma_destroy_event_channel,
    rdma_destroy_id,
    rdma_disconnect,
    rdma_establish,
    rdma_event_channel,
    rdma_event_str,
    rdma_get_cm_event,
    rdma_get_src_port,
    rdma_init_qp_attr,
    rdma_listen,
    rdma_resolve_addr,
    rdma_resolve_route,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_storage,
)
from cython_ext.verbs.verbs_queue cimport QueuePair

from cython_ext.verbs.verbs_queue import MIN_RNR_TIMER
from hwrx.errors import MachineError, PathError

REMEDY = "is RDMA-CM up on both ends (modprobe rdma_ucm), and an RDMA device on that address? rdma link"


cdef int fill_address(sockaddr_storage *out, str address, int port, uint32_t scope) except -1:
    cdef sockaddr_in *four = <sockaddr_in *> out
    cdef sockaddr_in6 *six = <sockaddr_in6 *> out
    cdef bytes raw
    memset(out, 0, sizeof(out[0]))
    if ":" in address:
        raw = socket.inet_pton(socket.AF_INET6, address)
        six.sin6_family = AF_INET6
        six.sin6_port = htons(port)
        six.sin6_scope_id = scope
        memcpy(&six.sin6_addr, <char *> raw, 16)
    else:
        raw = socket.inet_pton(socket.AF_INET, address)
        four.sin_family = AF_INET
        four.sin_port = htons(port)
        memcpy(&four.sin_addr, <char *> raw, 4)
    return 0


@cython.no_gc_clear
cdef class ManagedConnection:
    """One end of a connection that RDMA-CM makes: listening from the start, or calling when it is told whom.

    :param address: our own IP address, of the GID that is used
    :param scope: number of the network device, for a link-local IPv6 address
    :param listens: whether the other end calls
    :param limit: seconds that a step of the exchange may take
    :raises MachineError: if the kernel has no RDMA-CM for programs, or none on that address
    """
    cdef rdma_event_channel *channel
    cdef rdma_cm_id *own              # that calls, or listens
    cdef rdma_cm_id *accepted
    cdef str address
    cdef uint32_t scope
    cdef bint listens
    cdef double limit

    def __cinit__(self, str address not None, uint32_t scope, bint listens, double limit):
        cdef sockaddr_storage place
        self.address = address
        self.scope = scope
        self.listens = listens
        self.limit = limit
        self.channel = rdma_create_event_channel()
        if self.channel == NULL:
            raise MachineError(
                f"this kernel has no RDMA-CM for programs: rdma_create_event_channel: {os.strerror(c_errno)}",
                remedy="modprobe rdma_ucm",
            )
        if rdma_create_id(self.channel, &self.own, NULL, RDMA_PS_TCP):
            raise self._failed("rdma_create_id", c_errno)
        fill_address(&place, address, 0, scope)
        if listens:
            if rdma_bind_addr(self.own, <sockaddr *> &place):
                raise self._failed(f"rdma_bind_addr to {address}", c_errno)
            if rdma_listen(self.own, 1):
                raise self._failed("rdma_listen", c_errno)

    def __dealloc__(self):
        self._destroy()

    def _failed(self, call, int error):
        said = f"{os.strerror(error)} ({errno.errorcode.get(error, error)})"
        return MachineError(f"RDMA-CM: {call}: {said}", remedy=REMEDY)

    @property
    def port(self) -> int:
        """The port that the other end is to call.

        :return: a number of the port space RDMA_PS_TCP, which the kernel chose; 0 of an end that does not listen
        """
        return ntohs(rdma_get_src_port(self.own)) if self.listens and self.own != NULL else 0

    cdef rdma_cm_id *_await(self, rdma_cm_event_type wanted) except NULL:
        """Wait for an event, and acknowledge it; whose it is."""
        cdef rdma_cm_event *event
        cdef rdma_cm_event_type came
        cdef rdma_cm_id *whose
        cdef int status
        words = rdma_event_str(wanted).decode()
        poll = select.poll()
        poll.register(self.channel.fd, select.POLLIN)
        deadline = time.monotonic() + self.limit
        while not poll.poll(max(0, 1000 * (deadline - time.monotonic()))):  # PEP 475: a signal does not end it
            if time.monotonic() >= deadline:
                raise PathError(f"RDMA-CM: no {words} within {self.limit:g} s", remedy=REMEDY)
        if rdma_get_cm_event(self.channel, &event):
            raise self._failed("rdma_get_cm_event", c_errno)
        came, status, whose = event.event, event.status, event.id
        rdma_ack_cm_event(event)
        if came != wanted:
            said = rdma_event_str(came).decode()
            raise PathError(f"RDMA-CM: {said} (status {status}) came instead of {words}", remedy=REMEDY)
        return whose

    def connect(self, QueuePair pair not None, *, str peer, int peer_port, int mtu, int reads_out, int reads_in,
                int timeout, int retry_count, int rnr_retry, int traffic_class, int service_level):
        """Take a queue pair that is in INIT to RTS, with the other end, which does the same meanwhile.

        :param peer, peer_port: address and port of the end that listens; of no use to that one itself
        :param pair, mtu, reads_out, reads_in, timeout, retry_count, rnr_retry, traffic_class, service_level: as in
            `QueuePair.connect`
        :raises PathError: naming the step, if the other end does not answer or refuses
        :raises MachineError: if RDMA-CM finds another device for these addresses
        """
        cdef rdma_conn_param parameters
        cdef rdma_cm_id *ours = self.own
        cdef sockaddr_storage here, there
        cdef int wait_ms = <int> (1000 * self.limit)
        memset(&parameters, 0, sizeof(parameters))
        parameters.qp_num = pair.ptr.qp_num
        parameters.responder_resources = <uint8_t> reads_in
        parameters.initiator_depth = <uint8_t> reads_out
        parameters.retry_count = <uint8_t> retry_count
        parameters.rnr_retry_count = <uint8_t> rnr_retry
        if self.listens:
            ours = self.accepted = self._await(RDMA_CM_EVENT_CONNECT_REQUEST)
        else:
            fill_address(&here, self.address, 0, self.scope)
            fill_address(&there, peer, peer_port, self.scope)
            if rdma_resolve_addr(ours, <sockaddr *> &here, <sockaddr *> &there, wait_ms):
                raise self._failed(f"rdma_resolve_addr of {peer}", c_errno)
            self._await(RDMA_CM_EVENT_ADDR_RESOLVED)
            if rdma_resolve_route(ours, wait_ms):
                raise self._failed(f"rdma_resolve_route to {peer}", c_errno)
            self._await(RDMA_CM_EVENT_ROUTE_RESOLVED)
        found = ibv_get_device_name(ours.verbs.device).decode()
        if found != pair.pd.context.name:
            raise MachineError(
                f"RDMA-CM finds the device {found} for {self.address}, not {pair.pd.context.name}", remedy=REMEDY
            )
        if not self.listens:
            if rdma_connect(ours, &parameters):
                raise self._failed(f"rdma_connect to {peer} port {peer_port}", c_errno)
            self._await(RDMA_CM_EVENT_CONNECT_RESPONSE)
        # before the last word to the other end: what it sends from then on finds a queue pair that receives
        for state in (IBV_QPS_RTR, IBV_QPS_RTS):
            self._move(ours, pair, state, mtu, timeout, retry_count, rnr_retry, traffic_class, service_level)
        if self.listens:
            if rdma_accept(ours, &parameters):
                raise self._failed("rdma_accept", c_errno)
            self._await(RDMA_CM_EVENT_ESTABLISHED)
        elif rdma_establish(ours):
            raise self._failed("rdma_establish", c_errno)

    cdef _move(self, rdma_cm_id *ours, QueuePair pair, int state, int mtu, int timeout, int retry_count, int rnr_retry,
               int traffic_class, int service_level):
        cdef ibv_qp_attr attr
        cdef int mask = 0
        cdef int path_mtu = (<object> mtu).bit_length() - 8
        step = "RTR" if state == IBV_QPS_RTR else "RTS"
        memset(&attr, 0, sizeof(attr))
        attr.qp_state = <ibv_qp_state> state
        if rdma_init_qp_attr(ours, &attr, &mask):
            raise self._failed(f"rdma_init_qp_attr for {step}", c_errno)
        if state == IBV_QPS_RTR:
            attr.path_mtu = <ibv_mtu> path_mtu
            attr.min_rnr_timer = MIN_RNR_TIMER
            attr.ah_attr.grh.traffic_class = <uint8_t> traffic_class
            attr.ah_attr.sl = <uint8_t> service_level
        else:
            attr.timeout = <uint8_t> timeout
            attr.retry_cnt = <uint8_t> retry_count
            attr.rnr_retry = <uint8_t> rnr_retry
        pair.modify(&attr, mask, step)

    cdef void _destroy(self) noexcept:
        if self.accepted != NULL:
            rdma_disconnect(self.accepted)
            rdma_destroy_id(self.accepted)
            self.accepted = NULL
        if self.own != NULL:
            if not self.listens:
                rdma_disconnect(self.own)
            rdma_destroy_id(self.own)
            self.own = NULL
        if self.channel != NULL:
            rdma_destroy_event_channel(self.channel)
            self.channel = NULL

    def close(self):
        """Disconnect, and give everything back; harmless when called twice. The queue pair is the caller's."""
        self._destroy()
