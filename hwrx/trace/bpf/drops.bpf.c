/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Where messages die: every skb that carries one and is freed as dropped, counted by the kernel's reason and by the
 * function that freed it. And a program that drops them at the device (XDP), for the balance's own test.
 */
#include "message.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NAME 40
#define ROUTED 1 /* the packet had a route: what dropped it stands behind the routing */
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
