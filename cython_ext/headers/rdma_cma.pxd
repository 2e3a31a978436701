# distutils: libraries = rdmacm
"""<rdma/rdma_cma.h>: the part of librdmacm that hwrx uses. Structs are partial; the compiler knows the rest."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from cython_ext.headers.infiniband_verbs cimport ibv_context, ibv_qp_attr


cdef extern from "netinet/in.h" nogil:
    struct sockaddr:
        pass

    struct sockaddr_storage:
        pass

    struct in_addr:
        uint32_t s_addr

    struct in6_addr:
        uint8_t s6_addr[16]

    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr

    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id

    enum: AF_INET
    enum: AF_INET6
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)


cdef extern from "rdma/rdma_cma.h" nogil:
    enum rdma_cm_event_type:
        RDMA_CM_EVENT_ADDR_RESOLVED
        RDMA_CM_EVENT_ROUTE_RESOLVED
        RDMA_CM_EVENT_CONNECT_REQUEST
        RDMA_CM_EVENT_CONNECT_RESPONSE
        RDMA_CM_EVENT_ESTABLISHED

    enum rdma_port_space:
        RDMA_PS_TCP

    struct rdma_event_channel:
        int fd

    struct rdma_cm_id:
        ibv_context *verbs

    struct rdma_conn_param:
        uint8_t responder_resources
        uint8_t initiator_depth
        uint8_t retry_count
        uint8_t rnr_retry_count
        uint8_t srq
        uint32_t qp_num

    struct rdma_cm_event:
        rdma_cm_id *id
        rdma_cm_event_type event
        int status

    rdma_event_channel *rdma_create_event_channel()
    void rdma_destroy_event_channel(rdma_event_channel *channel)
    int rdma_create_id(rdma_event_channel *channel, rdma_cm_id **id, void *context, rdma_port_space space)
    int rdma_destroy_id(rdma_cm_id *id)
    int rdma_bind_addr(rdma_cm_id *id, sockaddr *address)
    int rdma_resolve_addr(rdma_cm_id *id, sockaddr *source, sockaddr *destination, int timeout_ms)
    int rdma_resolve_route(rdma_cm_id *id, int timeout_ms)
    int rdma_listen(rdma_cm_id *id, int backlog)
    int rdma_connect(rdma_cm_id *id, rdma_conn_param *parameters)
    int rdma_accept(rdma_cm_id *id, rdma_conn_param *parameters)
    int rdma_establish(rdma_cm_id *id)
    int rdma_disconnect(rdma_cm_id *id)
    int rdma_init_qp_attr(rdma_cm_id *id, ibv_qp_attr *attr, int *mask)
    int rdma_get_cm_event(rdma_event_channel *channel, rdma_cm_event **event)
    int rdma_ack_cm_event(rdma_cm_event *event)
    uint16_t rdma_get_src_port(rdma_cm_id *id)      # big-endian
    const char *rdma_event_str(rdma_cm_event_type event)
