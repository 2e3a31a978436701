# cython: language_level=3
"""What a completion with error or an asynchronous event means, in a sentence, and its usual cause."""

from cython_ext.verbs.verbs_device import WC_STATUS
from cython_ext.verbs.verbs_event import EVENTS

# Each `ibv_wc_status`: name -> (what it says, its usual cause). The values come from the header
# (WC_STATUS of verbs_device).
SENTENCES: dict[str, tuple[str, str]] = {
    "IBV_WC_SUCCESS": ("the work request completed", "no error at all"),
    "IBV_WC_LOC_LEN_ERR": (
        "the message does not fit what was posted here",
        "it is longer than the posted receive buffer, or a send is longer than the port's limit",
    ),
    "IBV_WC_LOC_QP_OP_ERR": (
        "the own queue pair could not carry the work request out",
        "the request is malformed; from rxe also: a message longer than the receive buffer, or its own link down",
    ),
    "IBV_WC_LOC_EEC_OP_ERR": (
        "the own end-to-end context could not carry the work request out",
        "only reliable datagrams have such contexts, and no current device offers them",
    ),
    "IBV_WC_LOC_PROT_ERR": (
        "the own memory may not be used like this",
        "a scatter/gather entry names a wrong lkey, or an address outside of its memory region",
    ),
    "IBV_WC_WR_FLUSH_ERR": (
        "the work request was thrown away because its queue pair is in the error state",
        "an earlier request failed or the other end disconnected; the first error is the one to look for",
    ),
    "IBV_WC_MW_BIND_ERR": ("a memory window could not be bound", "its region does not allow binding or that access"),
    "IBV_WC_BAD_RESP_ERR": (
        "the other end answered with an opcode that fits no request",
        "the ends disagree about the transport, or packets of an older connection arrive",
    ),
    "IBV_WC_LOC_ACCESS_ERR": (
        "a message that came in may not be written to the memory it is meant for",
        "the local memory region lacks IBV_ACCESS_LOCAL_WRITE",
    ),
    "IBV_WC_REM_INV_REQ_ERR": (
        "the other end found the request invalid",
        "the message is longer than the receive buffer posted there, or its queue pair does not allow the operation",
    ),
    "IBV_WC_REM_ACCESS_ERR": (
        "the other end refused access to its memory",
        "a wrong or outdated rkey, an address outside of the region, or a region without that remote access",
    ),
    "IBV_WC_REM_OP_ERR": (
        "the other end could not carry the operation out",
        "an error of its own, as a full completion queue; from rxe also a message longer than the receive buffer there",
    ),
    "IBV_WC_RETRY_EXC_ERR": (
        "the other end acknowledged nothing, however often the packet was sent",
        "the peer died, its link is down, or packets do not reach it (route, firewall, UDP port 4791)",
    ),
    "IBV_WC_RNR_RETRY_EXC_ERR": (
        "the other end had no receive buffer ready, however often the packet was sent",
        "the receiver posts too few receive requests or stopped taking messages",
    ),
    "IBV_WC_LOC_RDD_VIOL_ERR": (
        "the queue pair's reliable datagram domain does not match that of its context",
        "only reliable datagrams have such domains, and no current device offers them",
    ),
    "IBV_WC_REM_INV_RD_REQ_ERR": (
        "the other end found the reliable datagram invalid",
        "only reliable datagrams give this, and no current device offers them",
    ),
    "IBV_WC_REM_ABORT_ERR": (
        "the operation was aborted",
        "the other end's queue pair was moved to the error state while it was under way",
    ),
    "IBV_WC_INV_EECN_ERR": (
        "the end-to-end context number is invalid",
        "only reliable datagrams have such numbers, and no current device offers them",
    ),
    "IBV_WC_INV_EEC_STATE_ERR": (
        "the end-to-end context is in a state that does not allow the operation",
        "only reliable datagrams have such contexts, and no current device offers them",
    ),
    "IBV_WC_FATAL_ERR": ("the device failed for good", "hardware or firmware; the kernel's log says more"),
    "IBV_WC_RESP_TIMEOUT_ERR": ("a response did not come in time", "the other end is gone or overloaded"),
    "IBV_WC_GENERAL_ERR": ("the device reports an error of no other kind", "the kernel's log may say more"),
    "IBV_WC_TM_ERR": ("tag matching failed", "the tag list is in disorder; hwrx uses no tag matching"),
    "IBV_WC_TM_RNDV_INCOMPLETE": (
        "a tag-matching rendezvous is not complete",
        "software has to fetch the rest; hwrx uses no tag matching",
    ),
}

# Each `ibv_event_type` that ends a trial (EVENTS of verbs_event).
EVENT_SENTENCES: dict[str, tuple[str, str]] = {
    "IBV_EVENT_CQ_ERR": ("a completion queue overran", "more work requests were under way than it has entries"),
    "IBV_EVENT_QP_FATAL": ("the queue pair failed for good", "an error of the device; the kernel's log says more"),
    "IBV_EVENT_QP_REQ_ERR": (
        "the own queue pair found a request of the other end invalid",
        "the ends disagree about the transport, or the message is longer than the posted receive buffer",
    ),
    "IBV_EVENT_QP_ACCESS_ERR": (
        "the own queue pair refused the other end access to memory",
        "a wrong or outdated rkey, or an address outside of the region",
    ),
    "IBV_EVENT_DEVICE_FATAL": ("the device is gone or failed for good", "it was removed, or its driver unloaded"),
    "IBV_EVENT_PORT_ERR": (
        "the port went down in the middle of the trial, and stayed down",
        "its netdev was set down, the cable was pulled, or the other end's link went down",
    ),
}


def name_of(status: int) -> str:
    """Return the header's name for a status."""
    for name, value in WC_STATUS.items():
        if value == status:
            return name
    return f"ibv_wc_status {status}"


def explain_status(status: int) -> str:
    """One sentence: the status by name and number, what it says, and the usual cause."""
    name = name_of(status)
    if name not in SENTENCES:
        return f"{name}: newer than this build of hwrx knows"
    says, cause = SENTENCES[name]
    return f"{name} ({status}): {says}; usual cause: {cause}"


def explain_event(kind: int) -> str:
    """One sentence: the asynchronous event by name and number, what it says, and the usual cause."""
    for name, value in EVENTS.items():
        if value == kind:
            says, cause = EVENT_SENTENCES[name]
            return f"{name} ({kind}): {says}; usual cause: {cause}"
    return f"ibv_event_type {kind}: newer than this build of hwrx knows"
