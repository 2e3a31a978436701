/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The stages that see an skb: transmission, reception up to the socket. One function does them all; what differs is
 * whether the skb is new here (then it is parsed afresh: its address may have served another packet before).
 */
#pragma once
#include "record.h"

#define PROGRAM(section, name, ...) \
	SEC(section)                \
	int BPF_PROG(name, ##__VA_ARGS__)

#define BATCH 256 /* messages of one recvmmsg whose stamps are remembered; a power of two */

/* What a sending thread has been through before its message has an skb, and a receiving one after it had one. */
struct thread {
	struct message m;     /* the message being received, or received last */
	u64 sending;          /* sequence number + 1 of the message that a send call is carrying; 0: none */
	u64 entered, copied, started;
	u32 started_by;       /* tcp_write_xmit may come from an ACK that interrupts the call */
	u64 pinned_at;        /* MSG_ZEROCOPY: when pages were put into the packet, */
	u32 pinned;           /* and how many bytes since the last send call ended */
	u32 noted;            /* the flow that stands in `flows` for it */
	u64 taken;            /* when the last receive returned its bytes, and how many */
	u32 taken_bytes;
	u32 copied_bytes;
	u32 left;             /* bytes of the message still to be received */
	u32 flow;             /* of what it receives */
	u32 many;             /* the send call carries several messages */
	u32 consumed;         /* UDP: a message of ours has been copied by the receive call that is going on */
	u32 received;         /* how many times it was given bytes, */
	u64 times[BATCH];     /* and when, the latest of them: the n-th stands at n % BATCH */
	/* where nothing sees receive calls return: of a recvmmsg, the place of the message to come, and the last that came */
	u64 newest;
	u32 next;
};

/* With the task itself: to find it costs a few loads, where a hash of thread numbers would be shared by all CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* The current thread's record, NULL where it never sent or received a message. */
static __always_inline struct thread *this_thread(void)
{
	return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, 0);
}

/*
 * What every wake-up and switch asks of a task. Tasks of the same place take turns, and what is lost so is a stage that not
 * every message passes; a table like this one costs a load where a task's storage costs a search.
 */
struct task {
	struct message woken; /* the message that it is being woken for; valid while its skb is set */
	u32 pid;
	u32 known; /* it has sent or received a message */
} __attribute__((aligned(64)));

#define TASKS 256 /* a power of two */

struct task tasks[TASKS];

static __always_inline struct task *place_of(u32 pid)
{
	return &tasks[pid & (TASKS - 1)];
}

static __always_inline bool is_known(u32 pid)
{
	return place_of(pid)->pid == pid && place_of(pid)->known;
}

/* Return whether it was known before. */
static __always_inline bool make_known(u32 pid)
{
	struct task *task = place_of(pid);

	if (task->pid == pid && task->known)
		return true;
	task->woken.skb = 0;
	task->known = 1;
	task->pid = pid;
	return false;
}

/* The current thread's record, made where there is none. */
static __always_inline struct thread *make_thread(void)
{
	make_known((u32)bpf_get_current_pid_tgid());
	return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* The flows that carry messages: of a TCP segment that goes on with a message nothing else tells whose it is. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u32);
} flows SEC(".maps");

/* The message has an skb now: what its thread went through before can be told apart by flow, and recorded. */
static __noinline int release_held(const struct message *m)
{
	struct thread *t = this_thread();

	/* of several messages in one call each is copied, then handed on, before the next */
	if (!t || !(t->sending == m->sequence + 1 || (t->many && t->copied)))
		return 0;
	if (t->noted != m->flow) {
		bpf_map_update_elem(&flows, &m->flow, &m->trial, BPF_ANY);
		t->noted = m->flow;
	}
	/* what the thread has stamped in its own call, whoever carries the message on */
	if (t->entered)
		record_by(m, STAGE_SYS_ENTER_SEND, t->entered, 0, USER_THREAD);
	if (t->copied)
		record_by(m, STAGE_IP_GENERIC_GETFRAG, t->copied, t->copied_bytes, USER_THREAD);
	if (t->pinned_at)
		record_by(m, STAGE_SKB_ZEROCOPY_ITER, t->pinned_at, 0, USER_THREAD);
	if (t->started)
		record_by(m, STAGE_TCP_WRITE_XMIT, t->started, 0, t->started_by);
	if (!t->many) {
		t->sending = 0;
		return 0;
	}
	t->entered = t->copied = t->pinned_at = t->started = 0;
	t->copied_bytes = 0;
	return 0;
}

/* Transmission. `fresh`: the first stage that this skb may meet us at. */
static __always_inline int sent(struct sk_buff *skb, u32 stage, bool fresh)
{
	struct cpu *cpu = this_cpu();
	struct message m;

	if (!cpu)
		return 0;
	if (fresh || cpu->sent.skb != (u64)skb) {
		if (parse(skb, &m) != STARTS) {
			if (stage == STAGE_NET_DEV_START_XMIT)
				cpu->leaving = 0;
			return 0;
		}
		if (machine.holds && fresh)
			release_held(&m);
		cpu->sent = m;
	}
	record_on(cpu, &cpu->sent, stage, 0);
	if (stage == STAGE_NET_DEV_START_XMIT) {
		cpu->sent.skb = 0; /* the last that we see of it on this side; its address may soon be another's */
		cpu->leaving = (u64)skb;
	}
	return 0;
}

/* The softirq and the poll began for the current packet if they began after it was last seen. */
static __noinline int begun(struct cpu *cpu)
{
	u64 last;

	if (!timed(&cpu->current))
		return 0;
	last = stamped(&cpu->current);
	if (last && cpu->softirq_ns > last) {
		record_at(&cpu->current, STAGE_NET_RX_ACTION, cpu->softirq_ns, 0);
		last = cpu->softirq_ns;
	}
	if (last && cpu->poll_ns > last)
		record_at(&cpu->current, STAGE_NAPI_POLL, cpu->poll_ns, 0);
	return 0;
}

/* of the linear part, what is payload */
static __always_inline u32 linear_payload(struct sk_buff *skb, const struct message *m)
{
	u64 end = (u64)skb->data + skb->len - skb->data_len;

	return m->payload < end && m->payload >= (u64)skb->head ? (u32)(end - m->payload) : 0;
}

/* Reception. `fresh` as above; a foreign packet ends what the CPU was at. */
static __always_inline int received(struct sk_buff *skb, u32 stage, bool fresh, bool passed)
{
	struct cpu *cpu = this_cpu();
	struct message m;

	if (!cpu)
		return 0;
	if (stage == STAGE_NETIF_RECEIVE_SKB) {
		/* on most ways in, the device layer has shown us this very skb just before */
		fresh = cpu->entering != (u64)skb;
		cpu->entering = 0;
	}
	if (stage == STAGE_NETIF_RX && cpu->leaving == (u64)skb) {
		/* a veth's other end, or the loopback: the device hands over what it was given to send, within that call */
		cpu->current = cpu->sent;
		cpu->current.skb = (u64)skb;
	} else if (fresh || cpu->current.skb != (u64)skb) {
		/* a driver's skb stands at its network header, but does not say so before GRO has looked at it */
		if ((stage == STAGE_NAPI_GRO_RECEIVE ? parse_at_data(skb, &m) : parse(skb, &m)) != STARTS) {
			if (fresh)
				cpu->current.skb = 0;
			return 0;
		}
		cpu->current = m;
	}
	if (stage == STAGE_NETIF_RX || stage == STAGE_NAPI_GRO_RECEIVE)
		cpu->entering = (u64)skb;
	if (stage == STAGE_NETIF_RX) {
		cpu->leaving = 0;
		cpu->untimed = !timed(&cpu->current);
	}
	if (stage == STAGE_NETIF_RECEIVE_SKB || stage == STAGE_NAPI_GRO_RECEIVE)
		begun(cpu);
	record_on(cpu, &cpu->current, stage, passed ? cpu->current.length : 0);
	return 0;
}

/*
 * NICs do not write into the skb's that napi_alloc_skb makes: what stands in the linear part of one when the driver hands
 * it over, a CPU has copied there.
 */
static __always_inline int copybreak(struct sk_buff *skb)
{
	struct cpu *cpu = this_cpu();
	u32 bytes;

	if (!cpu || !cpu->allocated || cpu->allocated != (u64)skb)
		return 0;
	cpu->allocated = 0;
	if (cpu->current.skb != (u64)skb)
		return 0;
	bytes = linear_payload(skb, &cpu->current);
	if (bytes)
		account(STAGE_COPYBREAK, bytes);
	return 0;
}

static __always_inline int allocates(struct sk_buff *skb)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->allocated = (u64)skb;
	return 0;
}

PROGRAM("fexit/napi_alloc_skb", napi_alloc_skb__fexit, struct napi_struct *napi, unsigned int length,
	struct sk_buff *skb)
{
	return allocates(skb);
}

PROGRAM("fexit/__napi_alloc_skb", napi_alloc_skb_gfp__fexit, struct napi_struct *napi, unsigned int length, u32 gfp,
	struct sk_buff *skb)
{
	return allocates(skb);
}

/* --- both sets: tracepoints ------------------------------------------------------------------------------------- */

PROGRAM("tp_btf/net_dev_queue", net_dev_queue__tp, struct sk_buff *skb)
{
	return sent(skb, STAGE_NET_DEV_QUEUE, 0);
}

PROGRAM("tp_btf/net_dev_start_xmit", net_dev_start_xmit__tp, struct sk_buff *skb)
{
	return sent(skb, STAGE_NET_DEV_START_XMIT, 0);
}

PROGRAM("tp_btf/netif_rx", netif_rx__tp, struct sk_buff *skb)
{
	return received(skb, STAGE_NETIF_RX, 1, 0);
}

PROGRAM("tp_btf/napi_gro_receive_entry", napi_gro_receive_entry__tp, struct sk_buff *skb)
{
	received(skb, STAGE_NAPI_GRO_RECEIVE, 1, 0);
	return copybreak(skb);
}

PROGRAM("tp_btf/netif_receive_skb", netif_receive_skb__tp, struct sk_buff *skb)
{
	return received(skb, STAGE_NETIF_RECEIVE_SKB, 1, 0);
}

PROGRAM("tp_btf/softirq_entry", softirq_entry__tp, unsigned int vector)
{
	struct cpu *cpu;

	cpu = this_cpu();
	if (!cpu)
		return 0;
	cpu->serves = 1;
	if (vector != 3) /* NET_RX_SOFTIRQ */
		return 0;
	/* reading the clock is most of what this costs */
	if (!cpu->untimed)
		cpu->softirq_ns = bpf_ktime_get_ns();
	cpu->untimed = 0;
	return 0;
}

PROGRAM("tp_btf/softirq_exit", softirq_exit__tp, unsigned int vector)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->serves = 0;
	return 0;
}

PROGRAM("fentry/__napi_poll", napi_poll__fentry)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->poll_ns = bpf_ktime_get_ns();
	return 0;
}

/* --- netfilter links: where functions cannot be probed ------------------------------------------------------------ */

SEC("netfilter")
int local_out__netfilter(struct bpf_nf_ctx *ctx)
{
	sent(ctx->skb, STAGE_LOCAL_OUT, 1);
	return 1; /* NF_ACCEPT */
}

SEC("netfilter")
int post_routing__netfilter(struct bpf_nf_ctx *ctx)
{
	sent(ctx->skb, STAGE_POST_ROUTING, 0);
	return 1;
}

SEC("netfilter")
int pre_routing__netfilter(struct bpf_nf_ctx *ctx)
{
	received(ctx->skb, STAGE_PRE_ROUTING, 0, 0);
	return 1;
}

SEC("netfilter")
int local_in__netfilter(struct bpf_nf_ctx *ctx)
{
	received(ctx->skb, STAGE_LOCAL_IN, 0, 0);
	return 1;
}

SEC("cgroup_skb/ingress")
int sk_filter__cgroup(struct __sk_buff *ctx)
{
	struct cpu *cpu = this_cpu();

	/* runs within the softirq that has just recorded LOCAL_IN or netif_receive_skb for the same packet */
	if (cpu && cpu->current.skb)
		record_on(cpu, &cpu->current, STAGE_SK_FILTER, 0);
	return 1; /* pass */
}

/* --- functions ---------------------------------------------------------------------------------------------------- */

PROGRAM("fentry/tpacket_rcv", tpacket_rcv__fentry, struct sk_buff *skb)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		cpu->tapped = (u64)skb;
	return received(skb, STAGE_PACKET_RCV, 0, 0);
}

#define SENT(function, name, stage, fresh, ...) \
	PROGRAM("fentry/" #function, name, __VA_ARGS__) { return sent(skb, stage, fresh); }
#define RECEIVED(function, name, stage, fresh, ...) \
	PROGRAM("fentry/" #function, name, __VA_ARGS__) { return received(skb, stage, fresh, 0); }
#define PASSED(function, name, stage, ...) \
	PROGRAM("fentry/" #function, name, __VA_ARGS__) { return received(skb, stage, 0, 1); }

SENT(ip_output, ip_output__fentry, STAGE_IP_OUTPUT, 1, struct net *net, struct sock *sk, struct sk_buff *skb)
SENT(ip6_output, ip6_output__fentry, STAGE_IP_OUTPUT, 1, struct net *net, struct sock *sk, struct sk_buff *skb)
SENT(ip_finish_output2, ip_finish_output2__fentry, STAGE_IP_FINISH_OUTPUT2, 0, struct net *net, struct sock *sk,
     struct sk_buff *skb)
SENT(ip6_finish_output2, ip6_finish_output2__fentry, STAGE_IP_FINISH_OUTPUT2, 0, struct net *net, struct sock *sk,
     struct sk_buff *skb)

RECEIVED(enqueue_to_backlog, enqueue_to_backlog__fentry, STAGE_ENQUEUE_TO_BACKLOG, 0, struct sk_buff *skb)
RECEIVED(inet_gro_receive, inet_gro_receive__fentry, STAGE_INET_GRO_RECEIVE, 0, void *head, struct sk_buff *skb)
RECEIVED(ipv6_gro_receive, ipv6_gro_receive__fentry, STAGE_INET_GRO_RECEIVE, 0, void *head, struct sk_buff *skb)
RECEIVED(packet_rcv, packet_rcv__fentry, STAGE_PACKET_RCV, 0, struct sk_buff *skb)
RECEIVED(ip_rcv, ip_rcv__fentry, STAGE_IP_RCV, 0, struct sk_buff *skb)
RECEIVED(ipv6_rcv, ipv6_rcv__fentry, STAGE_IP_RCV, 0, struct sk_buff *skb)
RECEIVED(ip_rcv_core, ip_rcv_core__fentry, STAGE_IP_RCV, 0, struct sk_buff *skb)
RECEIVED(ip6_rcv_core, ip6_rcv_core__fentry, STAGE_IP_RCV, 0, struct sk_buff *skb)
RECEIVED(ip_route_input_noref, ip_route_input__fentry, STAGE_IP_ROUTE_INPUT, 0, struct sk_buff *skb)
RECEIVED(ip6_route_input, ip6_route_input__fentry, STAGE_IP_ROUTE_INPUT, 0, struct sk_buff *skb)
RECEIVED(ip_forward, ip_forward__fentry, STAGE_IP_FORWARD, 0, struct sk_buff *skb)
RECEIVED(ip6_forward, ip6_forward__fentry, STAGE_IP_FORWARD, 0, struct sk_buff *skb)
RECEIVED(ip_local_deliver, ip_local_deliver__fentry, STAGE_IP_LOCAL_DELIVER, 0, struct sk_buff *skb)
RECEIVED(ip6_input, ip6_input__fentry, STAGE_IP_LOCAL_DELIVER, 0, struct sk_buff *skb)
RECEIVED(udp_rcv, udp_rcv__fentry, STAGE_UDP_RCV, 0, struct sk_buff *skb)
RECEIVED(udpv6_rcv, udpv6_rcv__fentry, STAGE_UDP_RCV, 0, struct sk_buff *skb)
RECEIVED(tcp_v4_rcv, tcp_v4_rcv__fentry, STAGE_TCP_RCV, 0, struct sk_buff *skb)
RECEIVED(tcp_v6_rcv, tcp_v6_rcv__fentry, STAGE_TCP_RCV, 0, struct sk_buff *skb)
RECEIVED(tcp_v4_do_rcv, tcp_v4_do_rcv__fentry, STAGE_TCP_DO_RCV, 0, struct sock *sk, struct sk_buff *skb)
RECEIVED(tcp_v6_do_rcv, tcp_v6_do_rcv__fentry, STAGE_TCP_DO_RCV, 0, struct sock *sk, struct sk_buff *skb)
RECEIVED(udp_queue_rcv_one_skb, udp_queue_rcv_one_skb__fentry, STAGE_UDP_QUEUE_RCV_ONE_SKB, 0, struct sock *sk,
	 struct sk_buff *skb)
RECEIVED(udpv6_queue_rcv_one_skb, udpv6_queue_rcv_one_skb__fentry, STAGE_UDP_QUEUE_RCV_ONE_SKB, 0, struct sock *sk,
	 struct sk_buff *skb)
RECEIVED(sk_filter_trim_cap, sk_filter_trim_cap__fentry, STAGE_SK_FILTER, 0, struct sock *sk, struct sk_buff *skb)

/* The message that a socket has queued last: sk_data_ready follows, and may run in a task that softirqs interrupt. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct message);
} queues SEC(".maps");

static __always_inline int queues_at(struct sock *sk, struct sk_buff *skb, u32 stage)
{
	u64 key = (u64)sk;
	struct message m;

	if (parse(skb, &m) != STARTS) {
		bpf_map_delete_elem(&queues, &key);
		return 0;
	}
	record(&m, stage, 0);
	bpf_map_update_elem(&queues, &key, &m, BPF_ANY);
	return 0;
}

PROGRAM("fentry/__udp_enqueue_schedule_skb", udp_enqueue__fentry, struct sock *sk, struct sk_buff *skb)
{
	return queues_at(sk, skb, STAGE_UDP_ENQUEUE_SCHEDULE_SKB);
}

PROGRAM("fentry/tcp_queue_rcv", tcp_queue_rcv__fentry, struct sock *sk, struct sk_buff *skb)
{
	return queues_at(sk, skb, STAGE_TCP_QUEUE_RCV);
}

/* --- beside the chain: extra copies and passes -------------------------------------------------------------------- */

static __always_inline int extra(struct sk_buff *skb, u32 stage, u32 bytes)
{
	struct message m;

	if (parse(skb, &m) == FOREIGN && !(m.position && m.length && bpf_map_lookup_elem(&flows, &m.flow)))
		return 0;
	account(stage, bytes == (u32)-1 ? m.length : bytes);
	return 0;
}

PROGRAM("fentry/skb_copy", skb_copy__fentry, struct sk_buff *skb)
{
	return extra(skb, STAGE_SKB_COPY, -1);
}

PROGRAM("fentry/skb_copy_ubufs", skb_copy_ubufs__fentry, struct sk_buff *skb)
{
	return extra(skb, STAGE_SKB_COPY_UBUFS, skb->data_len);
}

PROGRAM("fentry/__skb_checksum_complete", skb_checksum_complete__fentry, struct sk_buff *skb)
{
	return extra(skb, STAGE_SKB_CHECKSUM_COMPLETE, -1);
}

PROGRAM("fentry/skb_checksum_help", skb_checksum_help__fentry, struct sk_buff *skb)
{
	return extra(skb, STAGE_SKB_CHECKSUM_HELP, -1);
}

PROGRAM("fentry/pskb_expand_head", pskb_expand_head__fentry, struct sk_buff *skb)
{
	struct message m;

	if (parse(skb, &m) != FOREIGN)
		account(STAGE_PSKB_EXPAND_HEAD, linear_payload(skb, &m));
	return 0;
}

PROGRAM("fentry/__pskb_pull_tail", pskb_pull_tail__fentry, struct sk_buff *skb, int delta)
{
	return extra(skb, STAGE_PSKB_PULL_TAIL, delta);
}
