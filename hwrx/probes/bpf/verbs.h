/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Verbs on rxe. A copy is tied to its packet by the payload's address in the skb: the sender copies first and hands the
 * packet on afterwards, the receiver queues the packet first and copies afterwards.
 */
#pragma once
#include "receiving.h"

#define RXE_TO_MR 0   /* enum rxe_mr_copy_dir */
#define IB_WC_RDMA_READ 2
#define IB_WC_RECV 128 /* a bit in every opcode of a receive completion */

struct copy {
	struct message m; /* receiver: whose packet it is */
	u64 ns;           /* sender: when the copy was done */
	u32 bytes;
	u32 continues;    /* receiver: not the message's first packet */
};

/* by address of the payload in the skb */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct copy);
} copies SEC(".maps");

/* the message that a half of a queue pair is at, by the kernel's queue pair */
struct half {
	u64 pair;
	u64 sends;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct half);
	__type(value, struct message);
} pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, u64);
} doorbells SEC(".maps");

/* the message whose payload a task (kernel worker, or whatever the softirq interrupted) copied last */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct message);
} responders SEC(".maps");

/* the message that a completion queue's newest completion is for */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct message);
} completions SEC(".maps");

/* --- sending -------------------------------------------------------------------------------------------------------- */

PROGRAM("fentry/rxe_post_send", rxe_post_send__fentry, struct ib_qp *ibqp)
{
	u64 key = (u64)ibqp, now = bpf_ktime_get_ns();

	bpf_map_update_elem(&doorbells, &key, &now, BPF_ANY);
	return 0;
}

PROGRAM("fentry/rxe_xmit_packet", rxe_xmit_packet__fentry, struct rxe_qp *qp, struct rxe_pkt_info *packet,
	struct sk_buff *skb)
{
	struct half key = {.pair = (u64)qp, .sends = 1};
	u64 bell = (u64)qp, now = bpf_ktime_get_ns(), *rung;
	struct message m = {}, *first;
	struct copy *copy;
	int what = parse(skb, &m);

	if (what == FOREIGN)
		return 0;
	copy = bpf_map_lookup_elem(&copies, &m.payload);
	if (what == CONTINUES) {
		first = bpf_map_lookup_elem(&pairs, &key);
		if (first && m.length)
			account(copy ? STAGE_RXE_MR_COPY_FROM_MR : STAGE_RXE_INLINE, copy ? copy->bytes : m.length);
		bpf_map_delete_elem(&copies, &m.payload);
		return 0;
	}
	bpf_map_update_elem(&pairs, &key, &m, BPF_ANY);
	rung = bpf_map_lookup_elem(&doorbells, &bell); /* struct rxe_qp begins with its struct ib_qp */
	if (rung && (!copy || *rung <= copy->ns) && (s64)*rung >= m.send_ns)
		record_by(&m, STAGE_RXE_POST_SEND, *rung, 0, USER_THREAD); /* a system call, whoever sends the packet */
	if (copy) {
		record_at(&m, STAGE_RXE_MR_COPY_FROM_MR, copy->ns, copy->bytes);
		bpf_map_delete_elem(&copies, &m.payload);
	} else if (m.length) {
		account(STAGE_RXE_INLINE, m.length);
	}
	record_at(&m, STAGE_RXE_XMIT_PACKET, now, 0);
	return 0;
}

PROGRAM("fexit/rxe_icrc_generate", rxe_icrc_generate__fexit, struct sk_buff *skb)
{
	struct message m = {};

	switch (parse(skb, &m)) {
	case STARTS:
		record(&m, STAGE_RXE_ICRC_GENERATE, m.length);
		break;
	case CONTINUES:
		account(STAGE_RXE_ICRC_GENERATE, m.length);
	}
	return 0;
}

/* --- receiving ------------------------------------------------------------------------------------------------------ */

static __always_inline int rxe_received(struct sk_buff *skb, u32 stage, bool passed)
{
	struct message m = {};

	switch (parse(skb, &m)) {
	case STARTS:
		record(&m, stage, passed ? m.length : 0);
		break;
	case CONTINUES:
		if (passed)
			account(stage, m.length);
	}
	return 0;
}

PROGRAM("fentry/rxe_udp_encap_recv", rxe_udp_encap_recv__fentry, struct sock *sk, struct sk_buff *skb)
{
	return rxe_received(skb, STAGE_RXE_UDP_ENCAP_RECV, 0);
}

PROGRAM("fentry/rxe_rcv", rxe_rcv__fentry, struct sk_buff *skb)
{
	return rxe_received(skb, STAGE_RXE_RCV, 0);
}

PROGRAM("fentry/rxe_icrc_check", rxe_icrc_check__fentry, struct sk_buff *skb)
{
	return rxe_received(skb, STAGE_RXE_ICRC_CHECK, 0);
}

PROGRAM("fexit/rxe_icrc_check", rxe_icrc_check__fexit, struct sk_buff *skb)
{
	return rxe_received(skb, STAGE_RXE_ICRC_CHECKED, 1);
}

/* The packet waits for its responder (or completer): remember whose the payload at this address is. */
static __always_inline int queued(struct rxe_qp *qp, struct sk_buff *skb)
{
	struct half key = {.pair = (u64)qp};
	struct copy copy = {};
	struct message *first;
	int what = parse(skb, &copy.m);

	if (what == FOREIGN) {
		/* what another packet left under this address is not this one's */
		bpf_map_delete_elem(&copies, &copy.m.payload);
		return 0;
	}
	if (what == CONTINUES) {
		u64 payload = copy.m.payload;

		first = bpf_map_lookup_elem(&pairs, &key);
		if (!first)
			return 0;
		copy.m = *first;
		copy.m.payload = payload;
		copy.continues = 1;
	} else {
		bpf_map_update_elem(&pairs, &key, &copy.m, BPF_ANY);
		record(&copy.m, STAGE_RXE_RESP_QUEUE_PKT, 0);
	}
	bpf_map_update_elem(&copies, &copy.m.payload, &copy, BPF_ANY);
	return 0;
}

PROGRAM("fentry/rxe_resp_queue_pkt", rxe_resp_queue_pkt__fentry, struct rxe_qp *qp, struct sk_buff *skb)
{
	return queued(qp, skb);
}

PROGRAM("fentry/rxe_comp_queue_pkt", rxe_comp_queue_pkt__fentry, struct rxe_qp *qp, struct sk_buff *skb)
{
	return queued(qp, skb);
}

PROGRAM("fentry/rxe_mr_copy", rxe_mr_copy__fentry, struct rxe_mr *mr, u64 iova, void *address, u32 length,
	u32 direction)
{
	u64 key = (u64)address;
	struct copy *copy;

	if (direction != RXE_TO_MR)
		return 0;
	copy = bpf_map_lookup_elem(&copies, &key);
	if (copy && !copy->continues)
		record(&copy->m, STAGE_RXE_MR_COPY_TO_MR, 0);
	return 0;
}

PROGRAM("fexit/rxe_mr_copy", rxe_mr_copy__fexit, struct rxe_mr *mr, u64 iova, void *address, u32 length, u32 direction,
	int ret)
{
	u64 key = (u64)address;
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct copy *copy;

	if (ret || !length)
		return 0;
	if (direction != RXE_TO_MR) {
		struct copy made = {};

		made.ns = bpf_ktime_get_ns();
		made.bytes = length;
		bpf_map_update_elem(&copies, &key, &made, BPF_ANY);
		return 0;
	}
	copy = bpf_map_lookup_elem(&copies, &key);
	if (!copy)
		return 0;
	record(&copy->m, STAGE_RXE_MR_COPIED, length);
	bpf_map_update_elem(&responders, &tid, &copy->m, BPF_ANY);
	bpf_map_delete_elem(&copies, &key);
	return 0;
}

/* Opcode of a completion: at 12 in struct ib_uverbs_wc (user ABI) and in struct ib_wc alike. */
static __always_inline bool delivers(struct rxe_cqe *cqe)
{
	u32 opcode = 0;

	bpf_probe_read_kernel(&opcode, 4, (char *)cqe + 12);
	return opcode & IB_WC_RECV || opcode == IB_WC_RDMA_READ;
}

PROGRAM("fentry/rxe_cq_post", rxe_cq_post__fentry, struct rxe_cq *cq, struct rxe_cqe *cqe)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	u64 key = (u64)cq;
	struct message *m;

	if (!delivers(cqe))
		return 0;
	m = bpf_map_lookup_elem(&responders, &tid);
	if (!m)
		return 0;
	record(m, STAGE_RXE_CQ_POST, 0);
	bpf_map_update_elem(&completions, &key, m, BPF_ANY);
	return 0;
}

PROGRAM("fexit/rxe_cq_post", rxe_cq_post__fexit, struct rxe_cq *cq, struct rxe_cqe *cqe)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct message *m;

	if (!delivers(cqe))
		return 0;
	m = bpf_map_lookup_elem(&responders, &tid);
	if (!m)
		return 0;
	record(m, STAGE_RXE_CQ_POSTED, 0);
	bpf_map_delete_elem(&responders, &tid);
	return 0;
}

PROGRAM("fentry/ib_uverbs_comp_handler", ib_uverbs_comp_handler__fentry, struct ib_cq *cq)
{
	u64 key = (u64)cq; /* struct rxe_cq begins with its struct ib_cq */
	struct cpu *cpu = this_cpu();
	struct message *m = bpf_map_lookup_elem(&completions, &key);

	if (!m || !cpu)
		return 0;
	record(m, STAGE_IB_UVERBS_COMP_HANDLER, 0);
	cpu->wake = *m;
	cpu->learned_only = 0;
	bpf_map_delete_elem(&completions, &key);
	return 0;
}

PROGRAM("fexit/ib_uverbs_comp_handler", ib_uverbs_comp_handler__fexit, struct ib_cq *cq)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->wake.skb = 0;
	return 0;
}
