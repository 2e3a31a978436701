/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The reader's end of a socket path: wake-ups, copies, system calls. There the message is known by the skb, by what
 * stands in the user's buffer, or by nesting: whoever is woken inside of sk_data_ready is woken for that skb's message.
 */
#pragma once
#include "sending.h"

/* --- the reader is told, woken, and runs ---------------------------------------------------------------------------- */

PROGRAM("fentry/sock_def_readable", sock_def_readable__fentry, struct sock *sk)
{
	struct cpu *cpu = this_cpu();
	u64 key = (u64)sk;
	struct message *m = bpf_map_lookup_elem(&queues, &key);

	if (!m || !cpu)
		return 0;
	record_on(cpu, m, STAGE_SK_DATA_READY, 0);
	if (!timed(m))
		return 0;
	cpu->wake = *m;
	cpu->learned_only = 0;
	return 0;
}

PROGRAM("fexit/sock_def_readable", sock_def_readable__fexit, struct sock *sk)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->wake.skb = 0;
	return 0;
}

PROGRAM("tp_btf/sk_data_ready", sk_data_ready__tp, struct sock *sk)
{
	struct cpu *cpu = this_cpu();

	if (!cpu || !cpu->current.skb)
		return 0;
	record_on(cpu, &cpu->current, STAGE_SK_DATA_READY, 0);
	/* of a message that is not timed the waking is not followed: it would be the dearest part of counting it */
	if (!timed(&cpu->current))
		return 0;
	cpu->wake = cpu->current;
	/* nothing tells when it is over, so only a thread that is known to receive is taken for the reader */
	cpu->learned_only = 1;
	return 0;
}

PROGRAM("tp_btf/sched_waking", sched_waking__tp, struct task_struct *task)
{
	struct cpu *cpu = this_cpu();
	struct task *place;
	u32 pid;

	if (!cpu || !cpu->wake.skb)
		return 0;
	pid = task->pid;
	place = place_of(pid);
	if (place->pid != pid) {
		if (cpu->learned_only)
			return 0;
		place->known = 0;
		place->pid = pid;
	} else if (cpu->learned_only && !place->known) {
		return 0;
	}
	record_on(cpu, &cpu->wake, STAGE_SCHED_WAKING, 0);
	place->woken = cpu->wake;
	cpu->wake.skb = 0;
	return 0;
}

PROGRAM("tp_btf/sched_switch", sched_switch__tp, bool preempt, struct task_struct *previous, struct task_struct *next)
{
	struct task *place;
	u32 pid = next->pid;

	if (!pid)
		return 0;
	place = place_of(pid);
	if (place->pid != pid || !place->woken.skb)
		return 0;
	/* the stage is the reader's: it is `next` that works from here on, not the task that made room for it */
	record_by(&place->woken, STAGE_SCHED_SWITCH, bpf_ktime_get_ns(), 0,
		  next->flags & PF_KTHREAD ? KERNEL_WORKER : USER_THREAD);
	place->woken.skb = 0;
	return 0;
}

/* --- receiving ------------------------------------------------------------------------------------------------------ */

PROGRAM("fexit/__skb_recv_udp", skb_recv_udp__fexit, struct sock *sk, unsigned int flags, int *off, int *err,
	struct sk_buff *skb)
{
	struct message m;

	if (!skb || (flags & 2 /* MSG_PEEK */) || parse(skb, &m) != STARTS)
		return 0;
	record(&m, STAGE_SKB_RECV_UDP, 0);
	return 0;
}

/*
 * UDP calls it when the copy is done; `length` is negative if the datagram stays in the queue (MSG_PEEK). With MSG_TRUNC
 * it is the datagram's and not what was copied, so the bytes are counted when udp_recvmsg returns.
 */
PROGRAM("fentry/skb_consume_udp", skb_consume_udp__fentry, struct sock *sk, struct sk_buff *skb, int length)
{
	struct message m;
	struct thread *t;

	if (parse(skb, &m) != STARTS)
		return 0;
	if (length >= 0)
		record(&m, STAGE_COPIED_TO_THE_USER, 0);
	t = make_thread();
	if (t) {
		t->m = m;
		t->flow = m.flow;
		t->taken = 0;
		t->consumed = 1;
	}
	return 0;
}

/* `room` bytes were offered, the call says `ret`. */
static __always_inline int udp_returns(u64 room, int ret)
{
	struct thread *t = this_thread();

	if (!t || !t->consumed)
		return 0;
	t->consumed = 0;
	if (ret > 0)
		add_bytes(STAGE_COPIED_TO_THE_USER, (u32)ret < room ? (u32)ret : (u32)room);
	return 0;
}

PROGRAM("fexit/udp_recvmsg", udp_recvmsg__fexit, struct sock *sk, struct msghdr *msg, u64 size)
{
	u64 ret = 0;

	/* not by position: the kernels' arguments differ behind the third */
	bpf_get_func_ret(ctx, &ret);
	return udp_returns(size, (int)ret);
}

PROGRAM("fexit/udpv6_recvmsg", udpv6_recvmsg__fexit, struct sock *sk, struct msghdr *msg, u64 size)
{
	u64 ret = 0;

	bpf_get_func_ret(ctx, &ret);
	return udp_returns(size, (int)ret);
}

static __always_inline void returned(const struct message *m, u64 now)
{
	if (machine.exits)
		record_at(m, STAGE_SYS_EXIT_RECV, now, 0);
}

static __noinline int recv_exits(u64 buffer, int ret)
{
	u64 now = bpf_ktime_get_ns();
	struct message m = {};
	struct thread *t;

	if (ret <= 0)
		return 0;
	t = this_thread();
	if (peek(buffer, ret, &m)) {
		if (!t) {
			/* its first message: from now on it is known as a reader */
			t = make_thread();
			if (t)
				t->m = m;
			account(STAGE_COPIED_TO_THE_USER, at_most(ret, room_of_call()));
			return 0;
		}
		if (t->m.sequence == m.sequence && t->m.trial == m.trial && !t->taken) {
			returned(&t->m, now);
			return 0;
		}
		m.flow = t->flow;
		t->m = m;
		t->left = settings.size > (u32)ret ? settings.size - ret : 0;
	} else if (t && t->left) {
		/* the message goes on where the last call ended */
		t->left = t->left > (u32)ret ? t->left - ret : 0;
	} else {
		return 0;
	}
	if (t->taken) {
		record_at(&t->m, STAGE_COPIED_TO_THE_USER, t->taken, t->taken_bytes);
		t->taken = 0;
	}
	returned(&t->m, now);
	return 0;
}

#define UNSEEN (~0ull)

/*
 * One of the messages that a recvmmsg has brought. `copied`: when its bytes had been copied, UNSEEN where that went by
 * because the thread was not known, 0 where the copy was stamped by the skb already. Global, as parse_packet is: the
 * verifier looks at it once, not once for each message of a batch.
 */
__noinline int one_of_batch(u64 header, u64 copied, u64 now)
{
	struct message m = {};
	struct thread *t;
	u32 length = 0;

	bpf_probe_read_user(&length, sizeof(length), (void *)(header + MMSG_LENGTH));
	length = at_most(length, room_of(header));
	if (!peek(first_buffer(header), length, &m))
		return 0;
	t = make_thread();
	if (!t)
		return 0;
	if (copied == UNSEEN) {
		account(STAGE_COPIED_TO_THE_USER, length);
		return 0;
	}
	m.flow = t->flow;
	t->m = m;
	if (copied)
		record_at(&m, STAGE_COPIED_TO_THE_USER, copied, length);
	returned(&m, now);
	return 0;
}

/* A recvmmsg has brought `count` messages. */
static __always_inline int batch_exits(u64 headers, int count)
{
	u64 now = bpf_ktime_get_ns(), copied;
	struct thread *t;
	u32 length = 0;
	int k;

	if (count == 1) {
		bpf_probe_read_user(&length, sizeof(length), (void *)(headers + MMSG_LENGTH));
		return recv_exits(first_buffer(headers), length);
	}
	t = this_thread();
	for (k = 0; k < BATCH; k++) {
		if (k >= count)
			break;
		copied = !t ? UNSEEN : t->taken ? t->times[(t->received - count + k) & (BATCH - 1)] : 0;
		one_of_batch(headers + k * MMSGHDR, copied, now);
	}
	if (t)
		t->taken = 0;
	return 0;
}

/*
 * Of a recvmmsg that is still going on: the buffer that was filled last. Nothing tells its place, but it is the next one,
 * or else the first: what stands in the next one is then older than what was received last.
 */
static __noinline u64 filled_last(u64 headers, u32 count)
{
	struct thread *t = this_thread();
	struct message m = {};
	u64 buffer;

	if (t && t->next && t->next < count) {
		buffer = first_buffer(headers + t->next * MMSGHDR);
		if (peek(buffer, 32, &m) && m.sequence > t->newest) {
			t->next++;
			t->newest = m.sequence;
			return buffer;
		}
	}
	buffer = first_buffer(headers);
	if (peek(buffer, 32, &m))
		t = make_thread();
	if (t) {
		t->next = 1;
		t->newest = m.sequence;
	}
	return buffer;
}

/* The buffer that the receive call of the current thread has filled last; 0 where that is not known. */
static __always_inline u64 filled(void)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	if (SYSCALL_NUMBER(regs) == __NR_recvmmsg)
		return filled_last(SYSCALL_ARG2(regs), SYSCALL_ARG3(regs));
	return buffer_of_call();
}

static __always_inline u32 flow_into(struct sock *sk)
{
	return sk->__sk_common.skc_dport ?
		       (u32)bpf_ntohs(sk->__sk_common.skc_dport) << 16 | sk->__sk_common.skc_num : 0;
}

/* `ret` bytes have been copied to the user, and nothing will see the call return: whose they are is looked up now. */
static __always_inline int taken_unseen(struct sock *sk, int ret)
{
	struct message m = {};
	struct thread *t;

	if (peek(filled(), ret, &m)) {
		m.flow = flow_into(sk);
		if (make_known((u32)bpf_get_current_pid_tgid()))
			record(&m, STAGE_COPIED_TO_THE_USER, ret);
		else
			account(STAGE_COPIED_TO_THE_USER, ret); /* from now on it is known as a reader */
		if (settings.size <= (u32)ret)
			return 0;
		t = make_thread();
		if (t) {
			t->m = m;
			t->left = settings.size - ret;
		}
		return 0;
	}
	if (settings.size <= (u32)ret)
		return 0;
	t = this_thread();
	if (!t || !t->left)
		return 0;
	/* the message goes on where the last call ended */
	t->left = t->left > (u32)ret ? t->left - ret : 0;
	record(&t->m, STAGE_COPIED_TO_THE_USER, ret);
	return 0;
}

/*
 * `ret` bytes have been copied to the user. Whose they are is read in the user's buffer: when the call returns, or where
 * nothing sees that, now, the buffer being what the call was given.
 */
static __always_inline int taken(struct sock *sk, int ret, int flags)
{
	struct thread *t;

	if (ret < 0)
		return 0;
	if (flags & MSG_TRUNC) {
		/* TCP throws the bytes away; UDP copies what there is room for, and says the datagram's length */
		if (sk->sk_protocol == IPPROTO_TCP)
			return 0;
		ret = at_most(ret, room_of_call());
	}
	if (!machine.exits)
		return ret ? taken_unseen(sk, ret) : 0;
	t = this_thread();
	if (!t)
		return 0;
	t->taken = bpf_ktime_get_ns();
	t->times[t->received++ & (BATCH - 1)] = t->taken;
	if (!ret)
		return 0;
	t->taken_bytes = ret;
	t->flow = flow_into(sk);
	return 0;
}

PROGRAM("fexit/tcp_recvmsg", tcp_recvmsg__fexit, struct sock *sk)
{
	u64 ret = 0, flags = 0;

	/*
	 * Not by position: newer kernels have dropped an argument. Until 5.18 the fourth was `nonblock`, MSG_DONTWAIT or 0, and
	 * a call with MSG_TRUNC counts there as one that copied.
	 */
	bpf_get_func_ret(ctx, &ret);
	bpf_get_func_arg(ctx, 3, &flags);
	return taken(sk, (int)ret, (int)flags);
}

PROGRAM("tp_btf/sock_recv_length", sock_recv_length__tp, struct sock *sk, int ret, int flags)
{
	if (sk->sk_protocol != IPPROTO_TCP && sk->sk_protocol != IPPROTO_UDP)
		return 0;
	return taken(sk, ret, flags);
}

PROGRAM("fexit/__sys_recvfrom", sys_recvfrom__fexit, int fd, void *buffer, u64 size, unsigned int flags, void *address,
	int *address_length, int ret)
{
	return recv_exits((u64)buffer, ret);
}

PROGRAM("fexit/__sys_recvmsg", sys_recvmsg__fexit, int fd, void *header, unsigned int flags, bool compat, long ret)
{
	return recv_exits(first_buffer((u64)header), (int)ret);
}

/* the compiler has put __sys_recvmmsg into it */
PROGRAM("fexit/" SYSCALL_FUNCTION "recvmmsg", sys_recvmmsg__fexit, struct pt_regs *regs, long ret)
{
	return ret > 0 ? batch_exits(SYSCALL_ARG2(regs), ret) : 0;
}

PROGRAM("tp_btf/sys_exit", sys_exit__tp, struct pt_regs *regs, long ret)
{
	long call = SYSCALL_NUMBER(regs);
	u64 buffer = SYSCALL_ARG2(regs);

	if (call == __NR_recvfrom || call == __NR_read)
		return ret > 0 && (call == __NR_recvfrom || this_thread()) ? recv_exits(buffer, ret) : 0;
	if (call == __NR_recvmsg)
		return recv_exits(first_buffer(buffer), ret);
	return call == __NR_recvmmsg && ret > 0 ? batch_exits(buffer, ret) : 0;
}

PROGRAM("fexit/tcp_zerocopy_receive", tcp_zerocopy_receive__fexit, struct sock *sk, struct tcp_zerocopy_receive *zc,
	void *stamps, int ret)
{
	u32 length = zc->length;
	struct message m = {};
	struct thread *t;

	if (ret || !length)
		return 0;
	t = this_thread();
	/* a message begins with the first page mapped, or it goes on */
	if (peek(zc->address, length, &m)) {
		t = make_thread();
		if (!t)
			return 0;
		m.flow = (u32)bpf_ntohs(sk->__sk_common.skc_dport) << 16 | sk->__sk_common.skc_num;
		t->m = m;
		t->flow = m.flow;
		t->left = settings.size > length ? settings.size - length : 0;
	} else if (t && t->left) {
		t->left = t->left > length ? t->left - length : 0;
	} else {
		return 0;
	}
	record(&t->m, STAGE_TCP_ZEROCOPY_RECEIVE, length);
	return 0;
}
