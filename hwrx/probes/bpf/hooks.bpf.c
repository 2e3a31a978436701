/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* Programs that let everything pass: what they cost is what being asked costs. */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("xdp")
int pass_frame(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("cgroup_skb/ingress")
int pass_packet(struct __sk_buff *ctx)
{
	return 1;
}
