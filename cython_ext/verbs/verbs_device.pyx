# cython: language_level=3
"""Verbs devices, their ports and GIDs, protection domains; and the one translator of a verb's errno into words."""

import errno
import os
import resource
import socket
from typing import NamedTuple

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from cython_ext.headers.infiniband_verbs cimport (
    IBV_ATOMIC_NONE,
    IBV_GID_TYPE_IB,
    IBV_GID_TYPE_ROCE_V1,
    IBV_GID_TYPE_ROCE_V2,
    IBV_LINK_LAYER_ETHERNET,
    IBV_ODP_SUPPORT,
    IBV_ODP_SUPPORT_ATOMIC,
    IBV_ODP_SUPPORT_IMPLICIT,
    IBV_ODP_SUPPORT_READ,
    IBV_ODP_SUPPORT_RECV,
    IBV_ODP_SUPPORT_SEND,
    IBV_ODP_SUPPORT_SRQ_RECV,
    IBV_ODP_SUPPORT_WRITE,
    IBV_PORT_ACTIVE,
    IBV_WC_BAD_RESP_ERR,
    IBV_WC_FATAL_ERR,
    IBV_WC_GENERAL_ERR,
    IBV_WC_INV_EEC_STATE_ERR,
    IBV_WC_INV_EECN_ERR,
    IBV_WC_LOC_ACCESS_ERR,
    IBV_WC_LOC_EEC_OP_ERR,
    IBV_WC_LOC_LEN_ERR,
    IBV_WC_LOC_PROT_ERR,
    IBV_WC_LOC_QP_OP_ERR,
    IBV_WC_LOC_RDD_VIOL_ERR,
    IBV_WC_MW_BIND_ERR,
    IBV_WC_REM_ABORT_ERR,
    IBV_WC_REM_ACCESS_ERR,
    IBV_WC_REM_INV_RD_REQ_ERR,
    IBV_WC_REM_INV_REQ_ERR,
    IBV_WC_REM_OP_ERR,
    IBV_WC_RESP_TIMEOUT_ERR,
    IBV_WC_RETRY_EXC_ERR,
    IBV_WC_RNR_RETRY_EXC_ERR,
    IBV_WC_SUCCESS,
    IBV_WC_TM_ERR,
    IBV_WC_TM_RNDV_INCOMPLETE,
    IBV_WC_WR_FLUSH_ERR,
    ibv_alloc_pd,
    ibv_close_device,
    ibv_dealloc_pd,
    ibv_device,
    ibv_device_attr_ex,
    ibv_free_device_list,
    ibv_get_device_list,
    ibv_get_device_name,
    ibv_gid_entry,
    ibv_open_device,
    ibv_port_attr,
    ibv_port_state_str,
    ibv_query_device,
    ibv_query_device_ex,
    ibv_query_gid_table,
    ibv_query_port,
)

from hwrx.errors import MachineError, PathError

# What a completion can say: the header's names and values.
WC_STATUS = {
    "IBV_WC_SUCCESS": IBV_WC_SUCCESS,
    "IBV_WC_LOC_LEN_ERR": IBV_WC_LOC_LEN_ERR,
    "IBV_WC_LOC_QP_OP_ERR": IBV_WC_LOC_QP_OP_ERR,
    "IBV_WC_LOC_EEC_OP_ERR": IBV_WC_LOC_EEC_OP_ERR,
    "IBV_WC_LOC_PROT_ERR": IBV_WC_LOC_PROT_ERR,
    "IBV_WC_WR_FLUSH_ERR": IBV_WC_WR_FLUSH_ERR,
    "IBV_WC_MW_BIND_ERR": IBV_WC_MW_BIND_ERR,
    "IBV_WC_BAD_RESP_ERR": IBV_WC_BAD_RESP_ERR,
    "IBV_WC_LOC_ACCESS_ERR": IBV_WC_LOC_ACCESS_ERR,
    "IBV_WC_REM_INV_REQ_ERR": IBV_WC_REM_INV_REQ_ERR,
    "IBV_WC_REM_ACCESS_ERR": IBV_WC_REM_ACCESS_ERR,
    "IBV_WC_REM_OP_ERR": IBV_WC_REM_OP_ERR,
    "IBV_WC_RETRY_EXC_ERR": IBV_WC_RETRY_EXC_ERR,
    "IBV_WC_RNR_RETRY_EXC_ERR": IBV_WC_RNR_RETRY_EXC_ERR,
    "IBV_WC_LOC_RDD_VIOL_ERR": IBV_WC_LOC_RDD_VIOL_ERR,
    "IBV_WC_REM_INV_RD_REQ_ERR": IBV_WC_REM_INV_RD_REQ_ERR,
    "IBV_WC_REM_ABORT_ERR": IBV_WC_REM_ABORT_ERR,
    "IBV_WC_INV_EECN_ERR": IBV_WC_INV_EECN_ERR,
    "IBV_WC_INV_EEC_STATE_ERR": IBV_WC_INV_EEC_STATE_ERR,
    "IBV_WC_FATAL_ERR": IBV_WC_FATAL_ERR,
    "IBV_WC_RESP_TIMEOUT_ERR": IBV_WC_RESP_TIMEOUT_ERR,
    "IBV_WC_GENERAL_ERR": IBV_WC_GENERAL_ERR,
    "IBV_WC_TM_ERR": IBV_WC_TM_ERR,
    "IBV_WC_TM_RNDV_INCOMPLETE": IBV_WC_TM_RNDV_INCOMPLETE,
}

GID_TYPES = {IBV_GID_TYPE_IB: "IB", IBV_GID_TYPE_ROCE_V1: "RoCE v1", IBV_GID_TYPE_ROCE_V2: "RoCE v2"}


# What on-demand paging may be had for, by transport (ibv_query_device_ex(3))
ODP = {
    "SEND": IBV_ODP_SUPPORT_SEND,
    "RECV": IBV_ODP_SUPPORT_RECV,
    "WRITE": IBV_ODP_SUPPORT_WRITE,
    "READ": IBV_ODP_SUPPORT_READ,
    "ATOMIC": IBV_ODP_SUPPORT_ATOMIC,
    "SRQ_RECV": IBV_ODP_SUPPORT_SRQ_RECV,
}


class OnDemand(NamedTuple):
    """What a device has of on-demand paging (ODP): `rc` and `ud` name operations, none if it has no ODP at all."""

    implicit: bool
    rc: frozenset[str]
    ud: frozenset[str]


class Port(NamedTuple):
    """A port as ibv_query_port gives it; `mtu` and `max_message` in bytes, `pkeys` entries of its table."""

    number: int
    active: bool
    state: str
    ethernet: bool
    mtu: int
    max_message: int
    lid: int
    pkeys: int


class Gid(NamedTuple):
    """One entry of a port's GID table; `raw` is 16 bytes, `netdev` empty where there is none."""

    number: int
    raw: bytes
    type: str
    netdev: str


def verbs_error(verb: str, what: str, int error) -> Exception:
    """The exception for a verb that failed on an object: names both, and what mends it.

    :param verb: the libibverbs call
    :param what: the object: a device, a port, a queue pair
    :param error: errno
    :return: a MachineError or a PathError, for the caller to raise
    """
    said = f"{verb} on {what}: {os.strerror(error)} ({errno.errorcode.get(error, error)})"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if error in (errno.ENOMEM, errno.EAGAIN) and limit != resource.RLIM_INFINITY:
        return MachineError(
            f"{said}; the limit of locked memory is {limit} bytes",
            remedy="ulimit -l unlimited (as root, or 'memlock unlimited' in /etc/security/limits.conf)",
        )
    if error == errno.ENOMEM:
        return MachineError(said, remedy="a smaller window or size; another program may hold the device's resources")
    if error in (errno.EPERM, errno.EACCES):
        return MachineError(said, remedy="run as root, or be allowed to open /dev/infiniband/uverbs*")
    if error in (errno.ENODEV, errno.ENOENT, errno.EIO):
        return MachineError(
            f"{said}; the device is gone, or was never there", remedy="hwrx rxe up NETDEV makes a SoftRoCE device"
        )
    if error in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT):
        return PathError(
            f"{said}; there is no way to the peer", remedy="both ends up and on one network? 'ip route get' its address"
        )
    if error in (errno.EOPNOTSUPP, errno.ENOSYS):
        return MachineError(f"{said}; this device cannot do that", remedy="'hwrx devices' lists what each can do")
    return PathError(said)


def device_names() -> list[str]:
    """Names of the verbs devices that libibverbs can open, in its order; [] if ib_uverbs is not loaded.

    :raises MachineError: if it cannot even look
    """
    cdef int count = 0, i
    cdef ibv_device **devices = ibv_get_device_list(&count)
    if devices == NULL:
        if c_errno == errno.ENOSYS:  # ib_uverbs is not loaded: no device either
            return []
        raise verbs_error("ibv_get_device_list", "this machine", c_errno)
    try:
        return [ibv_get_device_name(devices[i]).decode() for i in range(count)]
    finally:
        ibv_free_device_list(devices)


@cython.no_gc_clear
cdef class Context:
    """An open verbs device. Its children keep it alive; `close()` is idempotent.

    :param name: of the device, for example `rxe0`
    :raises MachineError: if there is no such device, or it cannot be opened
    """

    def __cinit__(self, str name not None):
        cdef int count = 0, i, error
        cdef ibv_device **devices = ibv_get_device_list(&count)
        self.name = name
        if devices == NULL:
            # ENOSYS: ib_uverbs is not loaded, so there is no device at all
            error = c_errno
            raise verbs_error("ibv_open_device", name, errno.ENODEV if error == errno.ENOSYS else error)
        try:
            for i in range(count):
                if ibv_get_device_name(devices[i]).decode() == name:
                    self.ptr = ibv_open_device(devices[i])
                    break
            else:
                raise verbs_error("ibv_open_device", name, errno.ENODEV)
            if self.ptr == NULL:
                raise verbs_error("ibv_open_device", name, c_errno or errno.ENODEV)
        finally:
            ibv_free_device_list(devices)
        error = ibv_query_device(self.ptr, &self.attr)
        if error:
            raise verbs_error("ibv_query_device", name, error)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_close_device(self.ptr)

    def _open(self):
        if self.ptr == NULL:
            raise ValueError(f"{self.name} is closed")

    @property
    def node_guid(self) -> str:
        """The device's GUID, 16 hexadecimal digits, the highest byte first; rxe derives it from its netdev's MAC."""
        return (<char *> &self.attr.node_guid)[:8].hex()

    @property
    def limits(self) -> dict[str, int]:
        """What one queue may hold and one queue pair may have outstanding, as ibv_query_device(3) gives it.

        :return: fields of ibv_device_attr by their names: max_qp, max_qp_wr, max_cqe, max_srq (0: it has no shared
            receive queues), max_srq_wr, max_qp_rd_atom, max_qp_init_rd_atom; `ports`, how many it has; and `atomics`,
            0 if it has none
        """
        a = self.attr
        return {
            "max_qp": a.max_qp, "max_qp_wr": a.max_qp_wr, "max_cqe": a.max_cqe, "max_srq": a.max_srq,
            "max_srq_wr": a.max_srq_wr,
            "max_qp_rd_atom": a.max_qp_rd_atom, "max_qp_init_rd_atom": a.max_qp_init_rd_atom,
            "ports": a.phys_port_cnt, "atomics": a.atomic_cap != IBV_ATOMIC_NONE,
        }

    @property
    def on_demand(self) -> OnDemand:
        """What the device has of on-demand paging; a device that does not answer the question has none."""
        cdef ibv_device_attr_ex attr
        self._open()
        if ibv_query_device_ex(self.ptr, NULL, &attr) != 0 or not attr.odp_caps.general_caps & IBV_ODP_SUPPORT:
            return OnDemand(False, frozenset(), frozenset())
        rc, ud = attr.odp_caps.per_transport_caps.rc_odp_caps, attr.odp_caps.per_transport_caps.ud_odp_caps
        return OnDemand(
            bool(attr.odp_caps.general_caps & IBV_ODP_SUPPORT_IMPLICIT),
            frozenset(name for name, bit in ODP.items() if rc & bit),
            frozenset(name for name, bit in ODP.items() if ud & bit),
        )

    @property
    def is_rxe(self) -> bool:
        """Whether the driver is SoftRoCE: of the kernel's drivers only it gives its devices a `parent` netdev."""
        return os.path.exists(f"/sys/class/infiniband/{self.name}/parent")

    def port(self, uint8_t number) -> Port:
        """Query a port.

        :param number: from 1 on
        :return: its state, link layer, MTU and largest message, both in bytes, and LID
        :raises PathError: if there is no port of that number
        """
        cdef ibv_port_attr attr
        self._open()
        if not 1 <= number <= self.attr.phys_port_cnt:
            raise PathError(f"{self.name} has ports 1 to {self.attr.phys_port_cnt}, not {number}")
        cdef int error = ibv_query_port(self.ptr, number, &attr)
        if error:
            raise verbs_error("ibv_query_port", f"{self.name} port {number}", error)
        return Port(
            number, attr.state == IBV_PORT_ACTIVE, ibv_port_state_str(attr.state).decode(),
            attr.link_layer == IBV_LINK_LAYER_ETHERNET, 128 << <int> attr.active_mtu, attr.max_msg_sz, attr.lid,
            attr.pkey_tbl_len,
        )

    def gids(self, uint8_t number) -> list[Gid]:
        """The port's GID table without its empty entries.

        :param number: of the port
        :return: a Gid each: its index, which is what a queue pair is told, its 16 bytes, its type and netdev
        :raises MachineError: if the device does not tell
        """
        cdef ibv_port_attr attr
        cdef ibv_gid_entry *entries
        cdef ssize_t found, i
        cdef size_t most = 0
        self._open()
        for port in range(1, self.attr.phys_port_cnt + 1):
            if ibv_query_port(self.ptr, port, &attr) == 0:
                most += <size_t> attr.gid_tbl_len
        entries = <ibv_gid_entry *> calloc(most + 1, sizeof(ibv_gid_entry))
        if entries == NULL:
            raise MemoryError
        try:
            found = ibv_query_gid_table(self.ptr, entries, most, 0)
            if found < 0:
                raise verbs_error("ibv_query_gid_table", self.name, <int> -found)
            return [
                Gid(
                    entries[i].gid_index, (<char *> entries[i].gid.raw)[:16],
                    GID_TYPES.get(entries[i].gid_type, str(entries[i].gid_type)), _netdev(entries[i].ndev_ifindex),
                )
                for i in range(found) if entries[i].port_num == number
            ]
        finally:
            free(entries)

    def close(self):
        """Close the device; harmless when called twice. Its protection domains must be closed before.

        :raises Exception: what `verbs_error` makes of a failure (EBUSY: something still uses it)
        """
        cdef int error
        if self.ptr != NULL:
            error = ibv_close_device(self.ptr)
            if error:
                raise verbs_error("ibv_close_device", self.name, c_errno)
            self.ptr = NULL

    def __repr__(self):
        return f"<Context {self.name}{' closed' if self.ptr == NULL else ''}>"


def _netdev(uint32_t index) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:  # it went away since
        return ""


@cython.no_gc_clear
cdef class ProtectionDomain:
    """What ties memory regions, queue pairs and address handles of one user together; it keeps its context alive.

    :param context: an open device
    :raises ValueError: if the context is closed
    :raises MachineError: if the device has no room for another one
    """

    def __cinit__(self, Context context not None):
        context._open()
        self.context = context
        self.ptr = ibv_alloc_pd(context.ptr)
        if self.ptr == NULL:
            raise verbs_error("ibv_alloc_pd", context.name, c_errno)

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_dealloc_pd(self.ptr)

    def close(self):
        """Give it back; harmless when called twice.

        :raises PathError: (EBUSY) while something still uses it
        """
        cdef int error
        if self.ptr != NULL:
            error = ibv_dealloc_pd(self.ptr)
            if error:
                raise verbs_error("ibv_dealloc_pd", self.context.name, error)
            self.ptr = NULL
