# distutils: libraries = ibverbs
"""<infiniband/verbs.h>: the part of libibverbs that hwrx uses. Structs are partial; the compiler knows the rest."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "infiniband/verbs.h" nogil:
    # --- devices ---------------------------------------------------------------------------------------------------
    struct ibv_device:
        pass

    struct ibv_context:
        ibv_device *device
        int async_fd

    union ibv_gid:
        uint8_t raw[16]

    enum: IBV_GID_TYPE_IB
    enum: IBV_GID_TYPE_ROCE_V1
    enum: IBV_GID_TYPE_ROCE_V2

    struct ibv_gid_entry:
        ibv_gid gid
        uint32_t gid_index
        uint32_t port_num
        uint32_t gid_type
        uint32_t ndev_ifindex

    enum ibv_atomic_cap:
        IBV_ATOMIC_NONE

    struct ibv_device_attr:
        uint64_t node_guid     # big-endian
        uint32_t vendor_id
        int max_qp
        int max_qp_wr
        int max_cqe
        int max_srq
        ibv_atomic_cap atomic_cap
        int max_srq_wr
        int max_qp_rd_atom
        int max_qp_init_rd_atom
        uint8_t phys_port_cnt

    # what of on-demand paging a device has, in general and by transport
    enum: IBV_ODP_SUPPORT
    enum: IBV_ODP_SUPPORT_IMPLICIT
    enum: IBV_ODP_SUPPORT_SEND
    enum: IBV_ODP_SUPPORT_RECV
    enum: IBV_ODP_SUPPORT_WRITE
    enum: IBV_ODP_SUPPORT_READ
    enum: IBV_ODP_SUPPORT_ATOMIC
    enum: IBV_ODP_SUPPORT_SRQ_RECV

    # the header's is inside of ibv_odp_caps, and has no name
    struct hwrx_transport_caps "typeof(((struct ibv_odp_caps *) 0)->per_transport_caps)":
        uint32_t rc_odp_caps
        uint32_t ud_odp_caps

    struct ibv_odp_caps:
        uint64_t general_caps
        hwrx_transport_caps per_transport_caps

    struct ibv_device_attr_ex:
        ibv_odp_caps odp_caps

    struct ibv_query_device_ex_input:
        pass

    int ibv_query_device_ex(ibv_context *context, const ibv_query_device_ex_input *input, ibv_device_attr_ex *attr)

    enum ibv_mtu:
        IBV_MTU_256

    enum ibv_port_state:
        IBV_PORT_ACTIVE

    enum: IBV_LINK_LAYER_ETHERNET

    struct ibv_port_attr:
        ibv_port_state state
        ibv_mtu active_mtu
        int gid_tbl_len
        uint32_t max_msg_sz
        uint16_t pkey_tbl_len
        uint16_t lid
        uint8_t link_layer

    ibv_device **ibv_get_device_list(int *count)
    void ibv_free_device_list(ibv_device **devices)
    const char *ibv_get_device_name(ibv_device *device)
    ibv_context *ibv_open_device(ibv_device *device)
    int ibv_close_device(ibv_context *context)
    int ibv_query_device(ibv_context *context, ibv_device_attr *attr)
    int ibv_query_port(ibv_context *context, uint8_t port, ibv_port_attr *attr)
    ssize_t ibv_query_gid_table(ibv_context *context, ibv_gid_entry *entries, size_t most, uint32_t flags)
    const char *ibv_port_state_str(ibv_port_state state)

    # --- protection domains, memory regions, address handles -------------------------------------------------------
    struct ibv_pd:
        pass

    ibv_pd *ibv_alloc_pd(ibv_context *context)
    int ibv_dealloc_pd(ibv_pd *pd)

    enum: IBV_ACCESS_LOCAL_WRITE
    enum: IBV_ACCESS_REMOTE_WRITE
    enum: IBV_ACCESS_REMOTE_READ
    enum: IBV_ACCESS_REMOTE_ATOMIC
    enum: IBV_ACCESS_ON_DEMAND

    struct ibv_mr:
        uint32_t lkey
        uint32_t rkey

    ibv_mr *ibv_reg_mr(ibv_pd *pd, void *address, size_t length, int access)
    ibv_mr *ibv_reg_dmabuf_mr(ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access)
    int ibv_dereg_mr(ibv_mr *mr)

    struct ibv_global_route:
        ibv_gid dgid
        uint32_t flow_label
        uint8_t sgid_index
        uint8_t hop_limit
        uint8_t traffic_class

    struct ibv_ah_attr:
        ibv_global_route grh
        uint16_t dlid
        uint8_t is_global
        uint8_t port_num
        uint8_t sl

    struct ibv_ah:
        pass

    ibv_ah *ibv_create_ah(ibv_pd *pd, ibv_ah_attr *attr)
    int ibv_destroy_ah(ibv_ah *ah)

    # --- completions -----------------------------------------------------------------------------------------------
    struct ibv_comp_channel:
        int fd

    struct ibv_cq:
        int cqe

    enum ibv_wc_status:
        IBV_WC_SUCCESS
        IBV_WC_LOC_LEN_ERR
        IBV_WC_LOC_QP_OP_ERR
        IBV_WC_LOC_EEC_OP_ERR
        IBV_WC_LOC_PROT_ERR
        IBV_WC_WR_FLUSH_ERR
        IBV_WC_MW_BIND_ERR
        IBV_WC_BAD_RESP_ERR
        IBV_WC_LOC_ACCESS_ERR
        IBV_WC_REM_INV_REQ_ERR
        IBV_WC_REM_ACCESS_ERR
        IBV_WC_REM_OP_ERR
        IBV_WC_RETRY_EXC_ERR
        IBV_WC_RNR_RETRY_EXC_ERR
        IBV_WC_LOC_RDD_VIOL_ERR
        IBV_WC_REM_INV_RD_REQ_ERR
        IBV_WC_REM_ABORT_ERR
        IBV_WC_INV_EECN_ERR
        IBV_WC_INV_EEC_STATE_ERR
        IBV_WC_FATAL_ERR
        IBV_WC_RESP_TIMEOUT_ERR
        IBV_WC_GENERAL_ERR
        IBV_WC_TM_ERR
        IBV_WC_TM_RNDV_INCOMPLETE

    enum ibv_wc_opcode:
        IBV_WC_SEND
        IBV_WC_RDMA_WRITE
        IBV_WC_RDMA_READ
        IBV_WC_COMP_SWAP
        IBV_WC_FETCH_ADD
        IBV_WC_RECV
        IBV_WC_RECV_RDMA_WITH_IMM

    struct ibv_wc:
        uint64_t wr_id
        ibv_wc_status status
        uint32_t vendor_err
        uint32_t byte_len
        uint32_t imm_data      # big-endian
        uint32_t qp_num
        uint32_t src_qp        # UD

    ibv_comp_channel *ibv_create_comp_channel(ibv_context *context)
    int ibv_destroy_comp_channel(ibv_comp_channel *channel)
    ibv_cq *ibv_create_cq(ibv_context *context, int cqe, void *cq_context, ibv_comp_channel *channel, int vector)
    int ibv_destroy_cq(ibv_cq *cq)
    int ibv_poll_cq(ibv_cq *cq, int most, ibv_wc *wc)
    int ibv_req_notify_cq(ibv_cq *cq, int solicited_only)
    int ibv_get_cq_event(ibv_comp_channel *channel, ibv_cq **cq, void **cq_context)
    void ibv_ack_cq_events(ibv_cq *cq, unsigned int count)

    # --- asynchronous events ---------------------------------------------------------------------------------------
    enum ibv_event_type:
        IBV_EVENT_CQ_ERR
        IBV_EVENT_QP_FATAL
        IBV_EVENT_QP_REQ_ERR
        IBV_EVENT_QP_ACCESS_ERR
        IBV_EVENT_DEVICE_FATAL
        IBV_EVENT_PORT_ACTIVE
        IBV_EVENT_PORT_ERR

    union hwrx_event_element "typeof(((struct ibv_async_event *) 0)->element)":
        int port_num

    struct ibv_async_event:
        hwrx_event_element element
        ibv_event_type event_type

    int ibv_get_async_event(ibv_context *context, ibv_async_event *event)
    void ibv_ack_async_event(ibv_async_event *event)

    # --- queue pairs -----------------------------------------------------------------------------------------------
    enum ibv_qp_type:
        IBV_QPT_RC
        IBV_QPT_UD

    enum ibv_qp_state:
        IBV_QPS_RESET
        IBV_QPS_INIT
        IBV_QPS_RTR
        IBV_QPS_RTS
        IBV_QPS_ERR

    struct ibv_qp_cap:
        uint32_t max_send_wr
        uint32_t max_recv_wr
        uint32_t max_send_sge
        uint32_t max_recv_sge
        uint32_t max_inline_data

    struct ibv_srq:
        pass

    struct ibv_srq_attr:
        uint32_t max_wr
        uint32_t max_sge

    struct ibv_srq_init_attr:
        ibv_srq_attr attr

    ibv_srq *ibv_create_srq(ibv_pd *pd, ibv_srq_init_attr *init)
    int ibv_destroy_srq(ibv_srq *srq)

    struct ibv_qp_init_attr:
        ibv_cq *send_cq
        ibv_cq *recv_cq
        ibv_srq *srq
        ibv_qp_cap cap
        ibv_qp_type qp_type
        int sq_sig_all

    struct ibv_qp:
        uint32_t qp_num

    enum: IBV_QP_STATE
    enum: IBV_QP_ACCESS_FLAGS
    enum: IBV_QP_PKEY_INDEX
    enum: IBV_QP_PORT
    enum: IBV_QP_QKEY
    enum: IBV_QP_AV
    enum: IBV_QP_PATH_MTU
    enum: IBV_QP_TIMEOUT
    enum: IBV_QP_RETRY_CNT
    enum: IBV_QP_RNR_RETRY
    enum: IBV_QP_RQ_PSN
    enum: IBV_QP_MAX_QP_RD_ATOMIC
    enum: IBV_QP_MIN_RNR_TIMER
    enum: IBV_QP_SQ_PSN
    enum: IBV_QP_MAX_DEST_RD_ATOMIC
    enum: IBV_QP_DEST_QPN

    struct ibv_qp_attr:
        ibv_qp_state qp_state
        ibv_mtu path_mtu
        uint32_t qkey
        uint32_t rq_psn
        uint32_t sq_psn
        uint32_t dest_qp_num
        unsigned int qp_access_flags
        ibv_ah_attr ah_attr
        uint16_t pkey_index
        uint8_t max_rd_atomic
        uint8_t max_dest_rd_atomic
        uint8_t min_rnr_timer
        uint8_t port_num
        uint8_t timeout
        uint8_t retry_cnt
        uint8_t rnr_retry

    ibv_qp *ibv_create_qp(ibv_pd *pd, ibv_qp_init_attr *attr)
    int ibv_modify_qp(ibv_qp *qp, ibv_qp_attr *attr, int mask)
    int ibv_query_qp(ibv_qp *qp, ibv_qp_attr *attr, int mask, ibv_qp_init_attr *init)
    int ibv_destroy_qp(ibv_qp *qp)

    # --- work requests ---------------------------------------------------------------------------------------------
    struct ibv_sge:
        uint64_t addr
        uint32_t length
        uint32_t lkey

    enum ibv_wr_opcode:
        IBV_WR_RDMA_WRITE
        IBV_WR_RDMA_WRITE_WITH_IMM
        IBV_WR_SEND
        IBV_WR_SEND_WITH_IMM
        IBV_WR_RDMA_READ
        IBV_WR_ATOMIC_CMP_AND_SWP
        IBV_WR_ATOMIC_FETCH_AND_ADD

    enum: IBV_SEND_SIGNALED
    enum: IBV_SEND_INLINE

    # The unions inside ibv_send_wr, named here only so that Cython can spell the members.
    struct ibv_send_wr_rdma "hwrx_never_declared_rdma":
        uint64_t remote_addr
        uint32_t rkey

    struct ibv_send_wr_atomic "hwrx_never_declared_atomic":
        uint64_t remote_addr
        uint64_t compare_add
        uint64_t swap
        uint32_t rkey

    struct ibv_send_wr_ud "hwrx_never_declared_ud":
        ibv_ah *ah
        uint32_t remote_qpn
        uint32_t remote_qkey

    union ibv_send_wr_wr "hwrx_never_declared_wr":
        ibv_send_wr_rdma rdma
        ibv_send_wr_atomic atomic
        ibv_send_wr_ud ud

    struct ibv_send_wr:
        uint64_t wr_id
        ibv_send_wr *next
        ibv_sge *sg_list
        int num_sge
        ibv_wr_opcode opcode
        unsigned int send_flags
        uint32_t imm_data      # big-endian
        ibv_send_wr_wr wr

    struct ibv_recv_wr:
        uint64_t wr_id
        ibv_recv_wr *next
        ibv_sge *sg_list
        int num_sge

    int ibv_post_send(ibv_qp *qp, ibv_send_wr *wr, ibv_send_wr **bad)
    int ibv_post_srq_recv(ibv_srq *srq, ibv_recv_wr *wr, ibv_recv_wr **bad)
    int ibv_post_recv(ibv_qp *qp, ibv_recv_wr *wr, ibv_recv_wr **bad)
