/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What is read of rxe's own types (drivers/infiniband/sw/rxe). As in kernel.h, their offsets come from BTF: the module's.
 */
#pragma once

#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* shared with user space (rdma/rdma_user_rxe.h) */
struct rxe_queue_buf {
	u32 index_mask, producer_index, consumer_index;
};

struct rxe_queue {
	struct rxe_queue_buf *buf;
};

struct rxe_rq {
	struct rxe_queue *queue;
};

struct rxe_sq {
	struct rxe_queue *queue;
};

struct rxe_cq {
	struct rxe_queue *queue;
};

struct rxe_recv_wqe;

struct rxe_resp_info {
	u32 psn; /* the one after that of the last request that was executed */
	struct rxe_recv_wqe *wqe;
};

enum ib_qp_state {
	IB_QPS_ERR = 6,
};

struct ib_qp_attr {
	enum ib_qp_state qp_state;
};

struct rxe_qp {
	struct ib_qp_attr attr;
	struct rxe_cq *rcq;
	struct rxe_sq sq;
	struct rxe_rq rq;
	struct rxe_resp_info resp;
};

/* what rxe keeps in the skb while it looks at a packet (rxe_hdr.h) */
struct rxe_pkt_info {
	struct rxe_qp *qp;
	u32 psn;
};

#pragma clang attribute pop
