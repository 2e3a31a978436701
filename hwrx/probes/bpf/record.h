/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What becomes of a stamp: it is added to its stage's totals (per CPU, for every message) and histogram (of the messages
 * that are timed), and where the message is one of the sampled ones, an event goes to user space.
 */
#pragma once
#include "message.h"
#include "stage_numbers.h"

#define BUCKETS 256 /* a power of two */
#define SLOTS 16384 /* messages whose last stamp is remembered; a power of two */

/* as in tracer.pyx, which compares */
struct event {
	u64 ns;       /* CLOCK_MONOTONIC */
	u64 sequence;
	u64 object;   /* the skb, or the buffer copied to or from */
	u32 flow;
	u32 trial;
	u32 bytes;    /* of payload, handled at this stage */
	u32 position; /* TCP: sequence number of the packet's first payload byte */
	u32 tid;      /* the task that the CPU was at; 0: idle */
	u16 cpu;
	u8 stage;
	u8 context;   /* who worked there: enum context */
};

_Static_assert(STAGES <= 256, "a stage's number has a byte in an event");

/*
 * Who works: found out, stamp by stamp, not taken from the catalogue. As ACTORS in hwrx/timelines/actors.py. No stage is
 * stamped in a hard interrupt's handler.
 */
enum context { UNKNOWN, USER_THREAD, KERNEL_WORKER, SOFTIRQ, CONTEXTS };

#define PF_KTHREAD 0x200000u

struct event *named; /* only so that the object's BTF has the structure, which no map's definition names */

struct totals {
	u64 count;  /* of messages that are timed; the others are in struct cpu */
	u64 bytes;
	u64 timed;  /* of `count`: those whose stamp before this one was known */
	u64 sum_ns; /* since that stamp */
	u64 max_ns;
	u64 by[CONTEXTS]; /* of `bytes`: who handled them */
	u32 buckets[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STAGES);
	__type(key, u32);
	__type(value, struct totals);
} totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} events SEC(".maps");

struct slot {
	u64 sequence;
	u64 ns;
	u32 flow, trial;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* What a CPU is at. The softirq that handles a packet does not leave its CPU, nor is it interrupted by another. */
struct cpu {
	struct message current; /* the last skb parsed in reception, valid while current.skb is set */
	struct message sent;    /* and in transmission */
	struct message wake;    /* whoever is woken next is woken for this message; valid while wake.skb is set */
	u64 softirq_ns, poll_ns;
	u64 leaving;  /* the skb that the device layer has just given to a device */
	u64 entering; /* the skb that the device layer has taken and the stack has not yet seen */
	u64 allocated; /* the skb that napi_alloc_skb made last */
	u64 tapped;    /* the skb that tpacket_rcv is at */
	u64 lost; /* events for which the ring had no room */
	u32 learned_only; /* wake: only a thread that has received before */
	u32 untimed; /* the softirq that was raised last is for a message that is not timed */
	u32 serves;  /* a softirq runs, on top of whatever task: between softirq_entry and softirq_exit */
	u32 unused;
	/* What is counted and not timed. Side by side, as most messages touch nothing else: each line of the cache counts. */
	struct {
		u64 count, bytes;
	} stages[STAGES];
	struct {
		u64 by[CONTEXTS];
	} handled[STAGES]; /* of `bytes` above, likewise */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

static __always_inline struct cpu *this_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

static __always_inline u32 context_on(const struct cpu *cpu)
{
	if (!machine.contexts || !cpu)
		return UNKNOWN;
	if (cpu->serves)
		return SOFTIRQ;
	return bpf_get_current_task_btf()->flags & PF_KTHREAD ? KERNEL_WORKER : USER_THREAD;
}

static __always_inline struct slot *slot_of(const struct message *m)
{
	u32 key = ((u32)m->sequence * 2 + (m->flow ^ m->flow >> 16) * 40503u) & (SLOTS - 1);

	return bpf_map_lookup_elem(&slots, &key);
}

/* 1 where x >= 2^n, for x below 2^63; no branch, of which the verifier would follow both */
#define REACHES(x, n) (((1ull << (n)) - 1 - (x)) >> 63)

/* Four buckets to each power of two of ns + 4: 0 to 3 ns have one each. Bucket b begins at ((4 + b % 4) << b / 4) - 4. */
static __always_inline u32 bucket_of(u64 ns)
{
	u64 x = ns + 4, e = 0, s;

	s = REACHES(x, 32) << 5; e += s; x >>= s;
	s = REACHES(x, 16) << 4; e += s; x >>= s;
	s = REACHES(x, 8) << 3; e += s; x >>= s;
	s = REACHES(x, 4) << 2; e += s; x >>= s;
	s = REACHES(x, 2) << 1; e += s; x >>= s;
	e += x >> 1;
	return (e - 2) * 4 + ((ns + 4) >> (e - 2) & 3);
}

/* Whether a message is timed. The clock is the dearest part of a stamp: what is only counted does not read it. */
static __always_inline bool timed(const struct message *m)
{
	return !((u32)m->sequence & settings.time_mask);
}

/* A stamp of a message at `ns`, by who worked there then. Global: see parse_packet. */
__noinline int record_by(const struct message *m, u32 stage, u64 ns, u32 bytes, u32 who)
{
	struct totals *t;
	struct slot *slot;
	struct event *e;
	u64 before;
	u32 bucket;

	if (!m)
		return 0;
	t = bpf_map_lookup_elem(&totals, &stage);
	if (!t)
		return 0;
	t->count++;
	t->bytes += bytes;
	if (bytes && who < CONTEXTS)
		t->by[who] += bytes;
	if (!timed(m))
		return 0;
	slot = slot_of(m);
	if (!slot)
		return 0;
	before = m->send_ns;
	if (slot->sequence == m->sequence && slot->flow == m->flow && slot->trial == m->trial && slot->ns)
		before = slot->ns;
	else
		slot->sequence = m->sequence, slot->flow = m->flow, slot->trial = m->trial;
	slot->ns = ns;
	if (before && ns >= before) {
		ns -= before;
		t->timed++;
		t->sum_ns += ns;
		if (ns > t->max_ns)
			t->max_ns = ns;
		bucket = bucket_of(ns);
		/* never more than 247; the mask is for the verifier, and hidden from the compiler that would drop it */
		asm volatile("" : "+r"(bucket));
		t->buckets[bucket & (BUCKETS - 1)]++;
		ns += before;
	}
	if (!settings.sample_every || (u32)m->sequence % settings.sample_every)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		struct cpu *cpu = this_cpu();

		if (cpu)
			cpu->lost++;
		return 0;
	}
	e->ns = ns;
	e->sequence = m->sequence;
	e->object = m->skb;
	e->flow = m->flow;
	e->trial = m->trial;
	e->bytes = bytes;
	e->position = m->position;
	e->tid = (u32)bpf_get_current_pid_tgid();
	e->cpu = (u16)bpf_get_smp_processor_id();
	e->stage = (u8)stage;
	e->context = (u8)who;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

/* The same, by who works now. */
static __always_inline int record_at(const struct message *m, u32 stage, u64 ns, u32 bytes)
{
	return record_by(m, stage, ns, bytes, context_on(this_cpu()));
}

static __always_inline void handled(struct cpu *cpu, u32 stage, u32 bytes)
{
	u32 who;

	if (!bytes)
		return;
	who = context_on(cpu);
	cpu->stages[stage].bytes += bytes;
	if (who < CONTEXTS)
		cpu->handled[stage].by[who] += bytes;
}

static __always_inline void count(struct cpu *cpu, u32 stage, u32 bytes)
{
	cpu->stages[stage].count++;
	handled(cpu, stage, bytes);
}

/* Bytes handled beside the chain: counted, and no stamp of the message. */
static __always_inline void account(u32 stage, u32 bytes)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		count(cpu, stage, bytes);
}

/* A stamp of a message, now. `cpu`: this one's, for who has it at hand. */
static __always_inline void record_on(struct cpu *cpu, const struct message *m, u32 stage, u32 bytes)
{
	if (timed(m))
		record_by(m, stage, bpf_ktime_get_ns(), bytes, context_on(cpu));
	else
		count(cpu, stage, bytes);
}

static __always_inline void record(const struct message *m, u32 stage, u32 bytes)
{
	if (timed(m))
		record_at(m, stage, bpf_ktime_get_ns(), bytes);
	else
		account(stage, bytes);
}

/* Bytes of a stage whose stamp is recorded later. */
static __always_inline void add_bytes(u32 stage, u32 bytes)
{
	struct cpu *cpu = this_cpu();

	if (cpu)
		handled(cpu, stage, bytes);
}

/* The last stamp of a message, 0 where it has none yet. */
static __always_inline u64 stamped(const struct message *m)
{
	struct slot *slot = slot_of(m);

	if (slot && slot->sequence == m->sequence && slot->flow == m->flow && slot->trial == m->trial)
		return slot->ns;
	return m->send_ns;
}
