/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The kernel's rings: where AF_PACKET (TPACKET_V3) and AF_XDP without zero-copy copy a frame.
 */
#pragma once
#include "verbs.h"

/* tpacket_rcv copies into the ring with it; others call it for purposes of their own. */
PROGRAM("fentry/skb_copy_bits", skb_copy_bits__fentry, struct sk_buff *skb)
{
	struct cpu *cpu = this_cpu();

	if (!cpu || !cpu->tapped || cpu->tapped != (u64)skb)
		return 0;
	return received(skb, STAGE_SKB_COPY_BITS, 0, 1);
}

PROGRAM("fexit/tpacket_rcv", tpacket_rcv__fexit)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->tapped = 0;
	return 0;
}

/* From the generic hook behind the driver: the frame, without its skb's headers, is where `xdp` says. */
PROGRAM("fexit/xsk_generic_rcv", xsk_generic_rcv__fexit, struct xdp_sock *xs, struct xdp_buff *xdp, int result)
{
	struct message m;

	if (!result && parse_frame(xdp->data, (u32)(xdp->data_end - xdp->data), &m) == STARTS)
		record(&m, STAGE_XSK_GENERIC_RCV, m.length);
	return 0;
}

/*
 * xsk_build_skb puts the whole frame into a fresh skb with it. `from` is asked for with the helper: as a member of the
 * context, 6.1 refuses a pointer to const void.
 */
SEC("fentry/skb_store_bits")
int skb_store_bits__fentry(void *ctx)
{
	u64 offset = 1, from = 0, length = 0;
	struct message m;

	bpf_get_func_arg(ctx, 1, &offset);
	bpf_get_func_arg(ctx, 2, &from);
	bpf_get_func_arg(ctx, 3, &length);
	if (!(u32)offset && (s32)length > ETHERNET && parse_frame((void *)from, (u32)length, &m) == STARTS)
		record(&m, STAGE_SKB_STORE_BITS, m.length);
	return 0;
}
