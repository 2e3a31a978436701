/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Whose time each nanosecond of each CPU is: what is known of a CPU, the bins of time, and the giving out of a piece of
 * time to whoever had it.
 */
#pragma once
#include "kernel.h"

#define NET_RX 3            /* NET_RX_SOFTIRQ of linux/interrupt.h */
#define PF_KTHREAD 0x00200000
#define SOCKETS 16          /* whose queues are looked at */
#define IRQS 8              /* the device's */
#define POLL_MOST 256       /* of the histograms: more goes into the last */
#define RUN_MOST 1024
#define IRQ_MOST 1024
#define LOOKS_A_BIN 3       /* as a shift: how often a bin's queues are looked at */

/* whose a nanosecond is; hwrx/probes/account.py has the names */
enum actor {
	IDLE,
	SENDER_USER,
	SENDER_SYSTEM,
	READER_USER,
	READER_SYSTEM,
	OTHER_USER,
	OTHER_SYSTEM,
	KSOFTIRQD,
	SOFTIRQ_NET,
	SOFTIRQ_OTHER,
	HARDIRQ,
	WORKER,
	HOUSEKEEPING,
	ACTORS,
};

/* who a task is */
enum role { R_IDLE, R_SENDER, R_READER, R_OTHER, R_KSOFTIRQD, R_WORKER, R_HOUSEKEEPING };

/* who polled: no device's, the receiving device's, another's */
enum poller { BACKLOG, DEVICE, ELSEWHERE, POLLERS };

/* in what context net_rx_action ran, by who had raised it */
enum context { BY_KSOFTIRQD, BY_INTERRUPT, BY_TASK, BY_SOFTIRQ, CONTEXTS };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device {
	char name[16];
};

struct napi_struct {
	struct net_device *dev;
};

struct softnet_data {
	struct sk_buff_head process_queue, input_pkt_queue;
};

typedef struct {
	int counter;
} atomic_t;

struct sock___queue {
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
};

struct file;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop

extern struct softnet_data softnet_data __ksym;

/* What user space says, before and (enabled) while; struct SETTINGS of hwrx/probes/counting.py. */
struct settings {
	u64 start;             /* CLOCK_MONOTONIC, of the first bin */
	u64 device[2];         /* name of the receiving device */
	u64 sockets[SOCKETS];  /* struct sock, whose queues are looked at; 0: no more */
	u32 irqs[IRQS];        /* the receiving device's interrupts; 0: no more */
	u32 enabled;
	u32 shift;             /* a bin is 1 << shift ns */
	u32 bins;              /* a CPU has so many */
	u32 cpus;
	u32 budget;            /* netdev_budget: packets that a run may take */
	u32 budget_us;         /* netdev_budget_usecs: time that it may take */
};

volatile struct settings settings = {};

struct bin {
	u64 ns[ACTORS];
	__s32 whole[ACTORS];   /* +1: from this bin on all of each bin is the actor's; -1: not any more */
	u32 polls, packets, runs, interrupts, backlog;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* CPUs by bins, set before loading */
	__type(key, u32);
	__type(value, struct bin);
} timeline SEC(".maps");

/* The most bytes that a socket's receive queue held, by bin and socket. CPUs may write over each other: a sample. */
struct queues {
	u32 bytes[SOCKETS];
	u32 receives;    /* verbs: the fewest receive requests that were posted, and one more; 0: nobody looked */
	u32 completions; /* verbs: the most completions that waited, and one more */
	u32 sends;       /* verbs: the most send requests that were not done with, and one more */
	u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* bins, set before loading */
	__type(key, u32);
	__type(value, struct queues);
} queues SEC(".maps");

struct context_sum {
	u64 runs, packets, ns;
};

/* What is known of a CPU, and what it has counted. */
struct cpu {
	u64 last;              /* up to here its time has been given to somebody */
	u64 looked;            /* at the queues */
	u64 run_began;
	u64 by_budget, by_time;/* runs that ended with work left, because they had had their packets or their time */
	u64 interrupts;        /* the receiving device's */
	u64 calls;             /* interrupts of other CPUs that want something done here */
	u64 outside;           /* polls outside of the softirq: threaded NAPI, busy polling */
	u64 outside_packets;
	struct context_sum contexts[CONTEXTS];
	u64 poll_budget;       /* the largest that a poll was given */
	u32 known;             /* whether role and kernel are */
	u32 role;
	u32 kernel;            /* whether the task is in the kernel */
	u32 softirq;           /* 0: none, 1: net_rx_action, 2: another */
	u32 irqs;              /* interrupts within each other */
	u32 raised;            /* bits of enum context: who has raised NET_RX since it last ran */
	u32 context;
	u32 run_polls, run_packets;
	u32 since_interrupt;   /* packets polled from the device since its last interrupt */
	u32 had_interrupt;
	u32 busy;              /* its time is just being given out: an event within this one gives out none */
	u32 polls[POLLERS][POLL_MOST + 1];
	u32 runs[RUN_MOST + 1];
	u32 per_interrupt[IRQ_MOST + 1];
	u32 unused_either;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* CPUs, set before loading */
	__type(key, u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

/* Whether a task that is off its CPU was in a system call. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} in_kernel SEC(".maps");

static __always_inline struct bin *bin_of(u32 cpu, u64 number)
{
	u32 index = cpu * settings.bins + (u32)number;

	return bpf_map_lookup_elem(&timeline, &index);
}

static __always_inline u32 actor_of(const struct cpu *c)
{
	if (c->irqs)
		return HARDIRQ;
	if (c->role == R_KSOFTIRQD)
		return KSOFTIRQD;
	if (c->softirq)
		return c->softirq == 1 ? SOFTIRQ_NET : SOFTIRQ_OTHER;
	switch (c->role) {
	case R_IDLE:
		return IDLE;
	case R_SENDER:
		return c->kernel ? SENDER_SYSTEM : SENDER_USER;
	case R_READER:
		return c->kernel ? READER_SYSTEM : READER_USER;
	case R_WORKER:
		return WORKER;
	case R_HOUSEKEEPING:
		return HOUSEKEEPING;
	}
	return c->kernel ? OTHER_SYSTEM : OTHER_USER;
}

static __always_inline bool begins_with(const char *comm, const char *word, u32 length)
{
	for (u32 i = 0; i < length; i++)
		if (comm[i] != word[i])
			return false;
	return true;
}

static __always_inline u32 role_of(struct task_struct *task)
{
	char comm[16];

	if (!task->pid)
		return R_IDLE;
	__builtin_memcpy(comm, task->comm, sizeof(comm));
	if (task->flags & PF_KTHREAD) {
		if (begins_with(comm, "ksoftirqd/", 10))
			return R_KSOFTIRQD;
		/* bound to no CPU, as those of rxe's queue are; those of one CPU are the kernel's own */
		if (begins_with(comm, "kworker/u", 9))
			return R_WORKER;
		/* what looks after memory, on nobody's behalf: KEEPERS of hwrx/paths/cputime.py */
		if (begins_with(comm, "khugepaged", 10) || begins_with(comm, "kcompactd", 9))
			return R_HOUSEKEEPING;
		return begins_with(comm, "kworker/", 8) ? R_HOUSEKEEPING : R_OTHER;
	}
	if (begins_with(comm, "hwrx-send", 9))
		return R_SENDER;
	return begins_with(comm, "hwrx-read", 9) ? R_READER : R_OTHER;
}

/* A piece of time to one actor, cut where bins meet; times are since the first bin. */
static __always_inline void give(const struct cpu *c, u32 cpu, u32 actor, u64 from, u64 to)
{
	u32 shift = settings.shift & 63;
	u64 first = from >> shift, second = to >> shift, within = (1ULL << shift) - 1;
	struct bin *b = bin_of(cpu, first);

	if (!b || actor >= ACTORS || second >= settings.bins)
		return;
	if (first == second) {
		b->ns[actor] += to - from;
		return;
	}
	b->ns[actor] += within + 1 - (from & within);
	b = bin_of(cpu, second);
	if (!b)
		return;
	b->ns[actor] += to & within;
	if (second > first + 1) {
		b->whole[actor]--;
		b = bin_of(cpu, first + 1);
		if (b)
			b->whole[actor]++;
	}
}

/* Give the time since the last event to whoever had it. NULL: nothing is being recorded. */
static __always_inline struct cpu *advance(u64 *at)
{
	u32 number = bpf_get_smp_processor_id(), within;
	struct cpu *c;
	u64 now;

	if (!settings.enabled)
		return NULL;
	c = bpf_map_lookup_elem(&cpus, &number);
	if (!c)
		return NULL;
	/*
	 * An interrupt may come in the middle of what follows; its time stays with the one that it interrupted. The clock
	 * is read behind this mark, or what an interrupt in between has given out would be given twice.
	 */
	within = c->busy;
	c->busy = 1;
	barrier();
	*at = now = bpf_ktime_get_ns();
	if (now < settings.start || (now - settings.start) >> (settings.shift & 63) >= settings.bins) {
		c->busy = within;
		return NULL;
	}
	if (within)
		return c;
	if (!c->known) {
		/* the first event on this CPU: it has been whose it is */
		struct task_struct *task = bpf_get_current_task_btf();

		c->role = role_of(task);
		c->kernel = task->flags & PF_KTHREAD ? 1 : 0;
		c->known = 1;
		c->last = settings.start;
	}
	give(c, number, actor_of(c), c->last - settings.start, now - settings.start);
	c->last = now;
	barrier();
	c->busy = 0;
	return c;
}

static __always_inline struct bin *bin_at(u64 now)
{
	return bin_of(bpf_get_smp_processor_id(), (now - settings.start) >> (settings.shift & 63));
}

/* Look at the sockets' queues, a few times a bin. */
static __always_inline void look(struct cpu *c, u64 now)
{
	u32 bin = (now - settings.start) >> (settings.shift & 63), i;
	struct queues *q;

	if (now - c->looked < (1ULL << (settings.shift & 63)) >> LOOKS_A_BIN)
		return;
	c->looked = now;
	q = bpf_map_lookup_elem(&queues, &bin);
	if (!q)
		return;
	for (i = 0; i < SOCKETS; i++) {
		struct sock___queue *sk = (void *)settings.sockets[i];
		int bytes = 0;

		if (!sk)
			return;
		bpf_core_read(&bytes, sizeof(bytes), &sk->sk_backlog.rmem_alloc.counter);
		if (bytes > 0 && (u32)bytes > q->bytes[i])
			q->bytes[i] = bytes;
	}
}
