/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Which sockets are given a packet of one four-tuple. The program stands where the kernel asks a control group about
 * what a socket is to receive (sk_filter_trim_cap), after the lookup and before the queue; it lets everything pass.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PROTOCOL4 9   /* bytes from the IPv4 header's start, RFC 791 */
#define ADDRESSES4 12 /* source, then destination */
#define NEXT6 6	      /* of the IPv6 header, RFC 8200 */
#define ADDRESSES6 8
#define HEADER6 40

struct asked {
	u32 version; /* 4 or 6 */
	u32 protocol;
	u8 ends[36]; /* source and destination address, source and destination port, as on the wire */
};

struct asked asked = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64); /* the socket's cookie */
	__type(value, u64);
} given SEC(".maps");

SEC("cgroup_skb/ingress")
int witness(struct __sk_buff *ctx)
{
	u8 ends[36] = {}, first = 0, protocol = 0;
	u32 length, ports;
	u64 cookie, one = 1, *count;

	if (bpf_skb_load_bytes(ctx, 0, &first, 1) || first >> 4 != asked.version)
		return 1;
	if (asked.version == 4) {
		length = 8;
		ports = (first & 15) * 4;
		if (bpf_skb_load_bytes(ctx, PROTOCOL4, &protocol, 1) || bpf_skb_load_bytes(ctx, ADDRESSES4, ends, 8) ||
		    bpf_skb_load_bytes(ctx, ports, ends + 8, 4))
			return 1;
	} else {
		length = 32;
		if (bpf_skb_load_bytes(ctx, NEXT6, &protocol, 1) || bpf_skb_load_bytes(ctx, ADDRESSES6, ends, 32) ||
		    bpf_skb_load_bytes(ctx, HEADER6, ends + 32, 4))
			return 1;
	}
	if (protocol != asked.protocol)
		return 1;
	for (int at = 0; at < 36; at++)
		if (at < length + 4 && ends[at] != asked.ends[at])
			return 1;
	cookie = bpf_get_socket_cookie(ctx);
	count = bpf_map_lookup_elem(&given, &cookie);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&given, &cookie, &one, BPF_ANY);
	return 1;
}
