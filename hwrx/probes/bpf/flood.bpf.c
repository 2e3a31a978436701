/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What the machine does while packets arrive: whose time each nanosecond of each CPU is, how many packets a poll, a run
 * of net_rx_action and an interrupt bring, who runs it, and how long the queues are. All of it is added up here, in bins
 * of time, so that the cost is a few additions an event and nothing has to be carried to user space meanwhile.
 *
 * A CPU's time is cut at every event that changes whose it is, and the piece before goes to who had it. So the pieces
 * of a CPU add up to the time that has passed, whatever happens.
 */
#include "cputime.h"
#include "rxe.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* --- whose time it is --------------------------------------------------------------------------------------------- */

SEC("tp_btf/sched_switch")
int BPF_PROG(task_changes, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now;
	struct cpu *c = advance(&now);
	u32 *held;

	if (!c)
		return 0;
	if (c->role == R_SENDER || c->role == R_READER || (c->role == R_OTHER && !(prev->flags & PF_KTHREAD))) {
		held = bpf_task_storage_get(&in_kernel, prev, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (held)
			*held = c->kernel;
	}
	c->role = role_of(next);
	c->kernel = 1;
	if (!(next->flags & PF_KTHREAD)) {
		/* a task that was never seen to leave its CPU sleeps in a system call */
		held = bpf_task_storage_get(&in_kernel, next, 0, 0);
		if (held)
			c->kernel = *held;
	}
	look(c, now);
	return 0;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(call_begins)
{
	u64 now;
	struct cpu *c = advance(&now);

	if (c)
		c->kernel = 1;
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(call_ends)
{
	u64 now;
	struct cpu *c = advance(&now);

	if (c) {
		c->kernel = 0;
		look(c, now);
	}
	return 0;
}

static __always_inline struct cpu *interrupt_begins(u64 *now)
{
	struct cpu *c = advance(now);

	if (c)
		c->irqs++;
	return c;
}

static __always_inline int interrupt_ends(void)
{
	u64 now;
	struct cpu *c = advance(&now);

	if (c && c->irqs)
		c->irqs--;
	return 0;
}

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(device_interrupt_begins, int irq, struct irqaction *action)
{
	u64 now;
	struct cpu *c = interrupt_begins(&now);
	struct bin *b;
	u32 i;

	if (!c)
		return 0;
	for (i = 0; i < IRQS; i++) {
		if (!settings.irqs[i])
			return 0;
		if (settings.irqs[i] == (u32)irq)
			break;
	}
	if (i == IRQS)
		return 0;
	if (c->had_interrupt) {
		u32 brought = c->since_interrupt;

		if (brought > IRQ_MOST)
			brought = IRQ_MOST;
		c->per_interrupt[brought]++;
	}
	c->had_interrupt = 1;
	c->since_interrupt = 0;
	c->interrupts++;
	b = bin_at(now);
	if (b)
		b->interrupts++;
	return 0;
}

SEC("tp_btf/irq_handler_exit")
int BPF_PROG(device_interrupt_ends)
{
	return interrupt_ends();
}

/* Interrupts that no device sends: x86 names them, other machines do not. Each has an entry and an exit. */
#define VECTOR(name)                                                                                                   \
	SEC("tp_btf/" #name "_entry")                                                                                  \
	int BPF_PROG(vector_##name##_begins)                                                                           \
	{                                                                                                              \
		u64 now;                                                                                               \
                                                                                                                       \
		interrupt_begins(&now);                                                                                \
		return 0;                                                                                              \
	}                                                                                                              \
	SEC("tp_btf/" #name "_exit")                                                                                   \
	int BPF_PROG(vector_##name##_ends)                                                                             \
	{                                                                                                              \
		return interrupt_ends();                                                                               \
	}

VECTOR(local_timer)
VECTOR(reschedule)
VECTOR(irq_work)
VECTOR(call_function)

SEC("tp_btf/call_function_single_entry")
int BPF_PROG(vector_call_function_single_begins)
{
	u64 now;
	struct cpu *c = interrupt_begins(&now);

	if (c)
		c->calls++;
	return 0;
}

SEC("tp_btf/call_function_single_exit")
int BPF_PROG(vector_call_function_single_ends)
{
	return interrupt_ends();
}

/* --- the softirq -------------------------------------------------------------------------------------------------- */

SEC("tp_btf/softirq_raise")
int BPF_PROG(softirq_is_raised, unsigned int vec)
{
	u32 number = bpf_get_smp_processor_id();
	struct cpu *c;

	if (vec != NET_RX || !settings.enabled)
		return 0;
	c = bpf_map_lookup_elem(&cpus, &number);
	if (c)
		c->raised |= 1 << (c->irqs ? BY_INTERRUPT : c->softirq ? BY_SOFTIRQ : BY_TASK);
	return 0;
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_begins, unsigned int vec)
{
	u64 now;
	struct cpu *c = advance(&now);
	struct bin *b;

	if (!c)
		return 0;
	c->softirq = vec == NET_RX ? 1 : 2;
	if (vec != NET_RX)
		return 0;
	c->run_began = now;
	c->run_polls = c->run_packets = 0;
	if (c->role == R_KSOFTIRQD)
		c->context = BY_KSOFTIRQD;
	else if (c->raised & 1 << BY_INTERRUPT)
		c->context = BY_INTERRUPT;
	else
		c->context = c->raised & 1 << BY_TASK ? BY_TASK : BY_SOFTIRQ;
	c->raised = 0;
	b = bin_at(now);
	if (b)
		b->runs++;
	look(c, now);
	return 0;
}

/*
 * How long the backlog is when it is about to be worked off. A kernel that hides its variables does not load this. It
 * runs behind softirq_begins, which was attached before and has read the clock.
 */
SEC("tp_btf/softirq_entry")
int BPF_PROG(backlog_is_seen, unsigned int vec)
{
	u32 number = bpf_get_smp_processor_id(), waiting;
	struct softnet_data *own;
	struct bin *b;
	struct cpu *c;

	if (vec != NET_RX || !settings.enabled)
		return 0;
	own = bpf_this_cpu_ptr(&softnet_data);
	waiting = own->input_pkt_queue.qlen + own->process_queue.qlen;
	c = bpf_map_lookup_elem(&cpus, &number);
	if (!waiting || !c || !c->known)
		return 0;
	b = bin_at(c->last);
	if (b && waiting > b->backlog)
		b->backlog = waiting;
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(softirq_ends, unsigned int vec)
{
	u64 now;
	struct cpu *c = advance(&now);
	u32 packets, context;

	if (!c)
		return 0;
	c->softirq = 0;
	if (vec != NET_RX || !c->run_began)
		return 0;
	packets = c->run_packets;
	context = c->context;
	if (context < CONTEXTS) {
		c->contexts[context].runs++;
		c->contexts[context].packets += packets;
		c->contexts[context].ns += now - c->run_began;
	}
	/* raised again by itself: it ended with work left, having had its packets or else its time */
	if (c->raised & 1 << BY_SOFTIRQ) {
		if (packets >= settings.budget)
			c->by_budget++;
		else if (now - c->run_began >= (u64)settings.budget_us * 1000)
			c->by_time++;
	}
	if (packets > RUN_MOST)
		packets = RUN_MOST;
	c->runs[packets]++;
	c->run_began = 0;
	look(c, now);
	return 0;
}

SEC("tp_btf/napi_poll")
int BPF_PROG(device_is_polled, struct napi_struct *napi, int work, int budget)
{
	u32 number = bpf_get_smp_processor_id(), poller = BACKLOG, index;
	u64 now, name[2] = {};
	struct net_device *dev;
	struct bin *b;
	struct cpu *c;

	if (!settings.enabled || work < 0)
		return 0;
	c = bpf_map_lookup_elem(&cpus, &number);
	if (!c)
		return 0;
	/* a single packet came at once behind the last event */
	now = c->known && work <= 1 ? c->last : bpf_ktime_get_ns();
	if (now < settings.start || (now - settings.start) >> (settings.shift & 63) >= settings.bins)
		return 0;
	dev = napi->dev;
	if (dev) {
		bpf_probe_read_kernel_str(name, sizeof(name), dev->name);
		poller = name[0] == settings.device[0] && name[1] == settings.device[1] ? DEVICE : ELSEWHERE;
	}
	index = work > POLL_MOST ? POLL_MOST : work;
	c->polls[poller][index]++;
	if (budget > 0 && (u64)budget > c->poll_budget)
		c->poll_budget = budget;
	if (poller == DEVICE)
		c->since_interrupt += work;
	if (c->softirq == 1) {
		c->run_polls++;
		c->run_packets += work;
	} else {
		c->outside++;
		c->outside_packets += work;
	}
	b = bin_at(now);
	if (b) {
		b->polls++;
		b->packets += work;
	}
	return 0;
}

/* --- verbs: how deep the queues are ------------------------------------------------------------------------------- */

static __always_inline u32 filled(struct rxe_queue *queue)
{
	struct rxe_queue_buf *buf = BPF_CORE_READ(queue, buf);

	return (BPF_CORE_READ(buf, producer_index) - BPF_CORE_READ(buf, consumer_index)) & BPF_CORE_READ(buf, index_mask);
}

static __always_inline struct queues *queues_now(void)
{
	u64 now = bpf_ktime_get_ns();
	u32 bin;

	if (!settings.enabled || now < settings.start)
		return NULL;
	bin = (now - settings.start) >> (settings.shift & 63);
	return bpf_map_lookup_elem(&queues, &bin);
}

/* Requests have been posted to be sent: with them, how many has the device not done with yet? */
SEC("kprobe/rxe_post_send")
int BPF_KPROBE(sends_are_posted, struct rxe_qp *qp)
{
	struct queues *q = queues_now();
	u32 waiting;

	if (!q)
		return 0;
	waiting = filled(BPF_CORE_READ(qp, sq.queue)) + 1;
	if (waiting > q->sends)
		q->sends = waiting;
	return 0;
}

/* A request has come in: how many receive requests are there for it, and how many completions have not been taken? */
SEC("kprobe/rxe_resp_queue_pkt")
int BPF_KPROBE(request_is_queued, struct rxe_qp *qp)
{
	struct queues *q = queues_now();
	u32 posted, waiting;

	if (!q)
		return 0;
	posted = filled(BPF_CORE_READ(qp, rq.queue)) + 1;
	waiting = filled(BPF_CORE_READ(qp, rcq, queue)) + 1;
	if (!q->receives || posted < q->receives)
		q->receives = posted;
	if (waiting > q->completions)
		q->completions = waiting;
	return 0;
}

/* --- which socket is behind a descriptor of the process that reads ------------------------------------------------ */

struct descriptor {
	u64 sock;
	u32 fd, unused;
};

SEC("iter/task_file")
int sockets_of_reader(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor found = {};
	struct socket *sock;

	if (!task || !file || task->tgid != bpf_get_current_task_btf()->tgid)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	found.sock = (u64)sock->sk;
	found.fd = ctx->fd;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}
