/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Where messages die: every skb that carries one and is freed as dropped, counted by the kernel's reason and by the
 * function that freed it. And a program that drops them at the device (XDP), for the balance's own test.
 */
#include "message.h"
#include "rxe.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NAME 40
#define ROUTED 1     /* the packet had a route: what dropped it stands behind the routing */
#define QUEUE_PAIR 2 /* RoCE: rxe had found the queue pair that it is for */
#define RELIABLE 4   /* TCP, or RoCE's reliable connection: whoever sent it sends it again */
#define STARVED 8    /* RoCE UD: rxe had no receive request for it */
#define BROKEN 16    /* RoCE UD: its queue pair was in the error state */
#define PLACES 4096

struct where {
	u64 location;
	u32 reason, flags;
};

struct dropped {
	u64 count;
	u64 first_ns, first_sequence; /* when it began here, and with which message */
	char function[NAME];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PLACES);
	__type(key, struct where);
	__type(value, struct dropped);
} drops SEC(".maps");

#define UD 3           /* the upper three bits of its opcodes (InfiniBand specification, table 38) */
#define PSN 0xffffff   /* packet sequence numbers have so many bits */

/*
 * The responder frees each datagram at the same place, whatever became of it (cleanup in rxe_resp.c). One that it has
 * executed is the last that it has; another found no receive request, if the queue pair holds none.
 */
static __always_inline u32 fate(const struct rxe_pkt_info *packet, struct rxe_qp *qp)
{
	u32 psn;

	if (!bpf_core_field_exists(qp->attr.qp_state) || !bpf_core_field_exists(qp->resp.wqe))
		return 0;
	if (BPF_CORE_READ(qp, attr.qp_state) == IB_QPS_ERR)
		return BROKEN;
	psn = BPF_CORE_READ(packet, psn);
	if (((psn + 1) & PSN) == (BPF_CORE_READ(qp, resp.psn) & PSN))
		return 0;
	return BPF_CORE_READ(qp, resp.wqe) ? 0 : STARVED;
}

/* RELIABLE and what rxe has found, of a packet, from its headers (IPv4 without options; others get none) */
static __always_inline u32 transport(struct sk_buff *skb)
{
	const struct rxe_pkt_info *packet = (void *)skb->cb;
	struct rxe_qp *qp;
	u32 kind;
	u8 b[29]; /* IP, UDP, and the first byte of RoCE: its opcode, whose upper three bits are the transport */

	if (bpf_probe_read_kernel(b, sizeof(b), skb->head + skb->network_header) || b[0] != 0x45)
		return 0;
	if (b[9] == IPPROTO_TCP)
		return RELIABLE;
	if (b[9] != IPPROTO_UDP || (b[22] << 8 | b[23]) != PORT_ROCE)
		return 0;
	kind = b[28] >> 5;
	if (!bpf_core_field_exists(packet->qp))
		return kind ? 0 : RELIABLE;
	qp = BPF_CORE_READ(packet, qp);
	if (!kind)
		return RELIABLE | (qp ? QUEUE_PAIR : 0);
	return qp ? QUEUE_PAIR | (kind == UD ? fate(packet, qp) : 0) : 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(message_dropped, struct sk_buff *skb, void *location, int reason)
{
	struct where key = {.location = (u64)location, .reason = reason};
	struct dropped fresh = {}, *known;
	struct message m;

	if (parse(skb, &m) == FOREIGN)
		return 0;
	if (skb->_skb_refdst & ~1UL)
		key.flags |= ROUTED;
	key.flags |= transport(skb);
	known = bpf_map_lookup_elem(&drops, &key);
	if (!known) {
		/* the kernel knows the names of its functions better than user space does */
		bpf_snprintf(fresh.function, NAME, "%ps", &key.location, sizeof(u64));
		fresh.first_ns = bpf_ktime_get_ns();
		fresh.first_sequence = m.sequence;
		bpf_map_update_elem(&drops, &key, &fresh, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&drops, &key);
	}
	/* a place that no room is left for stays unexplained, which shows */
	if (known)
		__sync_fetch_and_add(&known->count, 1);
	return 0;
}

/* Drops UDP datagrams over IPv4 (without options) that carry a message; everything else passes. */
SEC("xdp")
int drop_messages(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;

	if (data + 14 + 20 + 8 + 4 > end)
		return XDP_PASS;
	if (data[12] != 8 || data[13] || data[14] != 0x45 || data[23] != IPPROTO_UDP)
		return XDP_PASS;
	if (data[42] != (MAGIC & 255) || data[43] != (MAGIC >> 8 & 255))
		return XDP_PASS;
	return XDP_DROP;
}
