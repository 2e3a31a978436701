/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The sender's end of a socket path: system calls and copies.
 */
#pragma once
#include "calls.h"

static __always_inline int send_entered(u64 buffer, u64 now, bool many)
{
	struct message m = {};
	struct thread *t;

	/* the length is checked again in the skb; 32 lets the header be read whole where there is that much */
	if (!peek(buffer, 32, &m))
		return 0;
	t = make_thread();
	if (!t)
		return 0;
	t->sending = m.sequence + 1;
	t->entered = now;
	t->copied = 0;
	t->copied_bytes = 0;
	t->started = 0;
	t->pinned_at = 0;
	t->many = many;
	return 0;
}

PROGRAM("fentry/__sys_sendto", sys_sendto__fentry, int fd, void *buffer)
{
	return send_entered((u64)buffer, bpf_ktime_get_ns(), 0);
}

PROGRAM("fentry/__sys_sendmsg", sys_sendmsg__fentry, int fd, void *header)
{
	return send_entered(first_buffer((u64)header), bpf_ktime_get_ns(), 0);
}

PROGRAM("fentry/__sys_sendmmsg", sys_sendmmsg__fentry, int fd, void *headers)
{
	return send_entered(first_buffer((u64)headers), bpf_ktime_get_ns(), 1);
}

PROGRAM("fexit/ip_generic_getfrag", ip_generic_getfrag__fexit, void *from, char *to, int offset, int length)
{
	struct thread *t = this_thread();

	if (t && t->sending) {
		t->copied = bpf_ktime_get_ns();
		t->copied_bytes += length;
	}
	return 0;
}

PROGRAM("fentry/tcp_write_xmit", tcp_write_xmit__fentry)
{
	struct thread *t = this_thread();

	if (t && t->sending && !t->started) {
		t->started = bpf_ktime_get_ns();
		t->started_by = context_on(this_cpu());
	}
	return 0;
}

/* MSG_ZEROCOPY: `bytes` of the sender's memory have become part of the packet */
static __always_inline int pinned(u32 bytes)
{
	struct thread *t = this_thread();

	if (!t)
		return 0;
	t->pinned_at = bpf_ktime_get_ns();
	t->pinned += bytes;
	add_bytes(STAGE_SKB_ZEROCOPY_ITER, bytes);
	return 0;
}

PROGRAM("fexit/skb_zerocopy_iter_stream", skb_zerocopy_iter_stream__fexit, struct sock *sk)
{
	u64 ret = 0;

	/* not by position: the kernels' arguments differ */
	bpf_get_func_ret(ctx, &ret);
	return (int)ret > 0 ? pinned(ret) : 0;
}

/* the stream's way calls it too; for datagrams it is the whole of it */
PROGRAM("fexit/__zerocopy_sg_from_iter", zerocopy_sg_from_iter__fexit, struct msghdr *msg, struct sock *sk,
	struct sk_buff *skb, void *from, u64 length)
{
	u64 ret = 0;

	bpf_get_func_ret(ctx, &ret);
	return !ret && sk && sk->sk_protocol == IPPROTO_UDP ? pinned(length) : 0;
}

#define MSG_ZEROCOPY 0x4000000

/* what of the bytes that the call took was not pinned has been copied */
PROGRAM("fexit/tcp_sendmsg", tcp_sendmsg__fexit, struct sock *sk, struct msghdr *msg, u64 size, int ret)
{
	struct thread *t = this_thread();

	if (t && ret > 0) {
		account(STAGE_TCP_SENDMSG, t->pinned < (u32)ret ? ret - t->pinned : 0);
		t->pinned = 0;
	}
	return 0;
}

/* Whether the current thread sends messages; of one that is not known yet it is read in what it sends now. */
static __always_inline bool sends_messages(void)
{
	u32 pid = (u32)bpf_get_current_pid_tgid();
	struct message m = {};

	if (is_known(pid))
		return true;
	if (!peek(buffer_of_call(), 32, &m))
		return false;
	make_known(pid);
	return true;
}

PROGRAM("tp_btf/sock_send_length", sock_send_length__tp, struct sock *sk, int ret, int flags)
{
	u32 stage = STAGE_TCP_SENDMSG;

	if (ret <= 0)
		return 0;
	if (sk->sk_protocol == IPPROTO_UDP) {
		/* a datagram of another size is no message: credits, the end of a stream */
		if (settings.size && settings.size != (u32)ret)
			return 0;
		stage = STAGE_SOCK_SEND_LENGTH;
	} else if (sk->sk_protocol != IPPROTO_TCP) {
		return 0;
	}
	if (sends_messages())
		account(stage, flags & MSG_ZEROCOPY ? 0 : ret);
	return 0;
}
