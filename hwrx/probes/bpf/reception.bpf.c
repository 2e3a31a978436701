/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * How the kernel receives one packet: what each step of the way has in its hands. While `settings.armed` is set, every
 * program leaves a record of the step, of the CPU and of the task that it ran on; user space picks those of its packet.
 *
 * Nothing is chosen here, and nothing is aggregated: a quiet machine takes some hundred records for a packet. The
 * functions are probed by kprobes, because those come with the processor's flags (are interrupts let in?), and because
 * one that this kernel does not let be probed takes none of the others along.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define LANE 1024   /* records of one CPU in one context */
#define LANES 3     /* thread, softirq, hard interrupt: none of them is interrupted by itself */
#define ROOM 112    /* bytes of a frame, or words */
#define NAME 40
#define SECOND 40   /* where a record has a second word */
#define THIRD 80    /* and a third */
#define IMS 0xd0    /* 82574 datasheet, 10.2.4.7; to read it changes nothing */
#define VIRT_HARDIRQ 0x000f0000u /* include/linux/preempt.h: HARDIRQ_MASK */
#define SERVING 0x00000100u      /* SOFTIRQ_OFFSET: a softirq runs; more than that only holds them off */

/* as RECORD in hwrx/reception/records.py, in the same order as KINDS there */
enum kind {
	IRQ_ENTRY = 1, IRQ_EXIT, IRQ_EVENT, SOFTIRQ_RAISE, SOFTIRQ_ENTRY, SOFTIRQ_EXIT, NAPI_SCHEDULE, NAPI_POLLED,
	POLL_BEGINS, POLL_ENDS, RING_READ, HANDLER, HANDLER_ENDS, ALLOCATED, TYPED, GRO, STACK, PACKET_RCV, CLONED, IP_RCV,
	ROUTED, LOCAL, FORWARDED, OUTPUT, UDP_RCV, LOOKUP, FOUND_SOCK, UDP_QUEUE, FILTERED, ENQUEUED, READY, WAKING, SWITCHED,
	MM_SWITCHED, CR3_LOADED, TAKEN, COPIED, RECEIVED, SENT_CALL, DEVICE_QUEUE, XMIT, KILLED, PIO_READ, NETIF_RX, HOOK,
	NETWORK_RX, BACKLOG, VECTOR,
};

struct settings {
	u64 page_offset; /* the address of the kernel's variable, or with `constant` its value: virtual minus physical */
	u32 constant;
	u32 armed;
	u32 e1000e[2]; /* numbers of the devices that this driver has: theirs alone are the registers read below */
};

struct settings settings = {.constant = 1};

struct record {
	u64 ns;    /* CLOCK_MONOTONIC */
	u64 a[10]; /* by kind; see the programs */
	u64 pgd;   /* physical address of the page table that this CPU has loaded, as the kernel notes it; 0: not known */
	u64 flags; /* of the processor, at the function's entry; ~0: not told there */
	u32 tid, tgid, preempt;
	u16 cpu, kind;
	char comm[16];
	u8 bytes[ROOM];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 8 * LANES * LANE);
	__type(key, u32);
	__type(value, struct record);
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 8 * LANES);
	__type(key, u32);
	__type(value, u64);
} used SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs___flags {
	unsigned long flags, cs, ip;
	u64 pstate, pc;
};

struct mm_struct {
	void *pgd;
};

struct tlb_state {
	struct mm_struct *loaded_mm;
	u16 loaded_mm_asid;
};

struct pcpu_hot {
	int preempt_count;
};

struct task_struct___mm {
	int pid, tgid;
	struct mm_struct *mm, *active_mm;
	unsigned int __state;
	char comm[16];
};

struct irq_chip {
	const char *name;
};

struct irq_data {
	unsigned int irq;
	struct irq_chip *chip;
	struct irq_data *parent_data;
	void *chip_data;
};

struct irq_desc {
	struct irq_data irq_data;
};

struct apic_chip_data {
	unsigned int vector, cpu;
};

struct net_device_ops;

struct net_device___way {
	char name[16];
	const struct net_device_ops *netdev_ops;
	void *priv;
	int ifindex;
	unsigned int flags;
};

struct napi_struct___way {
	void *poll;
	int weight;
	struct net_device___way *dev;
};

struct sk_buff___way {
	struct net_device___way *dev;
	unsigned int len, data_len;
	u16 network_header, mac_header;
	u32 end;
	unsigned char *head, *data;
	u8 pkt_type : 3;
	u8 cloned : 1;
};

struct file {
	struct inode *f_inode;
};

struct socket___way {
	struct file *file;
};

struct sock___way {
	struct sock_common __sk_common;
	struct socket___way *sk_socket;
	struct sk_buff_head sk_receive_queue;
	int sk_rcvbuf;
};

struct e1000_buffer {
	u64 dma;
	struct sk_buff___way *skb;
};

struct e1000_hw {
	u8 *hw_addr;
};

struct e1000_adapter {
	struct e1000_hw hw;
};

struct e1000_ring {
	struct e1000_adapter *adapter;
	u8 *desc;
	u64 dma;
	unsigned int count;
	u16 next_to_use, next_to_clean;
	struct e1000_buffer *buffer_info;
};

struct nf_hook_entries {
	u16 num_hook_entries;
};

struct nf_hook_state___way {
	u8 hook, pf;
};

#pragma clang attribute pop

/* what an older or newer kernel does not have resolves to nothing, and is not asked */
extern const struct tlb_state cpu_tlbstate __ksym __weak;
extern struct pt_regs *__irq_regs __ksym __weak;
extern const int __preempt_count __ksym __weak;
extern const struct pcpu_hot pcpu_hot __ksym __weak;

static __always_inline u32 preempt_count(void)
{
	if (&pcpu_hot)
		return BPF_CORE_READ((const struct pcpu_hot *)bpf_this_cpu_ptr(&pcpu_hot), preempt_count);
	if (&__preempt_count)
		return *(const int *)bpf_this_cpu_ptr(&__preempt_count);
	return 0;
}

#define IMAGE 0xffffffff80000000ull /* where x86 has the kernel's image: Documentation/arch/x86/x86_64/mm.rst */
#define IN_IMAGE 1ull		    /* no physical address of a page */

/*
 * The physical address behind one of the kernel's own, which are mapped one to one. What lies in the kernel's image is
 * mapped elsewhere: of page tables that is init_mm's, which kernel threads have if no process has lent them its own.
 */
static __always_inline u64 physical(const void *address)
{
	u64 offset = settings.page_offset;

	if ((u64)address >= IMAGE)
		return IN_IMAGE;

	if (!settings.constant)
		bpf_probe_read_kernel(&offset, sizeof(offset), (void *)settings.page_offset);
	return address && offset ? (u64)address - offset : 0;
}

static __always_inline struct record *begin(u32 kind, u64 flags)
{
	u32 count, lane, cpu = bpf_get_smp_processor_id();
	struct record *r;
	u64 pid, *at;

	if (!settings.armed)
		return 0;
	count = preempt_count();
	lane = cpu * LANES + (count & VIRT_HARDIRQ ? 2 : count & SERVING ? 1 : 0);
	at = bpf_map_lookup_elem(&used, &lane);
	if (!at)
		return 0;
	if (*at >= LANE) {
		(*at)++; /* user space sees by this that there was no room */
		return 0;
	}
	lane = lane * LANE + (u32)*at;
	(*at)++;
	r = bpf_map_lookup_elem(&records, &lane);
	if (!r)
		return 0;
	r->ns = bpf_ktime_get_ns();
	r->kind = kind;
	r->cpu = cpu;
	pid = bpf_get_current_pid_tgid();
	r->tid = (u32)pid;
	r->tgid = pid >> 32;
	r->preempt = count;
	r->flags = flags;
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	if (&cpu_tlbstate)
		r->pgd = physical(BPF_CORE_READ((const struct tlb_state *)bpf_this_cpu_ptr(&cpu_tlbstate), loaded_mm, pgd));
	return r;
}

#if defined(__TARGET_ARCH_x86)
#define FLAGS(ctx) (((struct pt_regs___flags *)(ctx))->flags)
#define REGS_IP(regs) BPF_CORE_READ((struct pt_regs___flags *)(regs), ip)
#define REGS_CS(regs) BPF_CORE_READ((struct pt_regs___flags *)(regs), cs)
#define REGS_FLAGS(regs) BPF_CORE_READ((struct pt_regs___flags *)(regs), flags)
#else
#define FLAGS(ctx) (~0ull)
#define REGS_IP(regs) BPF_CORE_READ((struct pt_regs___flags *)(regs), pc)
#define REGS_CS(regs) 0
#define REGS_FLAGS(regs) BPF_CORE_READ((struct pt_regs___flags *)(regs), pstate)
#endif
#define UNTOLD (~0ull)

/* the kernel knows the names of its functions better than user space does */
static __always_inline void name_of(struct record *r, u32 at, const void *function)
{
	u64 address = (u64)function;

	if (at <= ROOM - 32)
		bpf_snprintf((char *)r->bytes + at, 32, "%ps", &address, sizeof(address));
}

static __always_inline void note_skb(struct record *r, struct sk_buff *packet)
{
	struct sk_buff___way *skb = (void *)packet;
	struct net_device___way *dev;
	unsigned char *head;

	if (!skb)
		return;
	head = BPF_CORE_READ(skb, head);
	r->a[0] = (u64)skb;
	r->a[1] = (u64)head;
	r->a[2] = (u64)BPF_CORE_READ(skb, data);
	r->a[3] = physical((void *)r->a[2]);
	r->a[4] = BPF_CORE_READ(skb, len);
	dev = BPF_CORE_READ(skb, dev);
	r->a[5] = (u64)dev;
	if (dev)
		r->a[6] = BPF_CORE_READ(dev, ifindex);
	r->a[7] = BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type) | BPF_CORE_READ_BITFIELD_PROBED(skb, cloned) << 8;
}

/* the frame from its Ethernet header on; before that is known, from where the data begin */
static __always_inline void note_frame(struct record *r, struct sk_buff *packet)
{
	struct sk_buff___way *skb = (void *)packet;
	u16 mac;

	note_skb(r, packet);
	mac = BPF_CORE_READ(skb, mac_header);
	r->a[8] = mac == 0xffff ? r->a[2] : r->a[1] + mac;
	bpf_probe_read_kernel(r->bytes, ROOM, (void *)r->a[8]);
}

static __always_inline void note_sock(struct record *r, struct sock *found)
{
	struct sock___way *sk = (void *)found;

	r->a[0] = (u64)sk;
	if (!sk)
		return;
	r->a[1] = BPF_CORE_READ(sk, __sk_common.skc_num);
	r->a[2] = BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
	r->a[3] = BPF_CORE_READ(sk, sk_receive_queue.qlen);
	r->a[4] = BPF_CORE_READ(sk, sk_rcvbuf);
}

/* --- interrupts, softirqs, polls ----------------------------------------------------------------------------------- */

/* a: irq, handler, dev_id, where the CPU was: ip, cs, flags; bytes: the handler's name, the action's */
SEC("tp_btf/irq_handler_entry")
int BPF_PROG(irq_entry, int irq, struct irqaction *action)
{
	struct record *r = begin(IRQ_ENTRY, UNTOLD);
	void *regs = 0;

	if (!r)
		return 0;
	r->a[0] = irq;
	r->a[1] = (u64)BPF_CORE_READ(action, handler);
	r->a[2] = (u64)BPF_CORE_READ(action, dev_id);
	if (&__irq_regs)
		regs = *(struct pt_regs **)bpf_this_cpu_ptr(&__irq_regs);
	if (regs) {
		r->a[3] = REGS_IP(regs);
		r->a[4] = REGS_CS(regs);
		r->a[5] = REGS_FLAGS(regs);
	}
	name_of(r, 0, (void *)r->a[1]);
	bpf_probe_read_kernel_str(r->bytes + SECOND, 32, BPF_CORE_READ(action, name));
	if (!(r->a[4] & 3)) /* a function of the kernel's; another address has no name */
		name_of(r, THIRD, (void *)r->a[3]);
	return 0;
}

/* a: irq, what the handler returned */
SEC("tp_btf/irq_handler_exit")
int BPF_PROG(irq_exit, int irq, struct irqaction *action, int returned)
{
	struct record *r = begin(IRQ_EXIT, UNTOLD);

	if (r) {
		r->a[0] = irq;
		r->a[1] = returned;
	}
	return 0;
}

/* a: irq, vector and CPU of the interrupt table, chips between device and CPU; bytes: the chips' names */
SEC("kprobe/handle_irq_event")
int BPF_KPROBE(irq_event, struct irq_desc *desc)
{
	struct record *r = begin(IRQ_EVENT, FLAGS(ctx));
	struct irq_data *data = (void *)desc, *parent;
	struct apic_chip_data *apic;

	if (!r)
		return 0;
	data = (void *)((u64)desc + bpf_core_field_offset(struct irq_desc, irq_data));
	r->a[0] = BPF_CORE_READ(data, irq);
	bpf_probe_read_kernel_str(r->bytes, 32, BPF_CORE_READ(data, chip, name));
	/* an interrupt passes a few domains on its way: the outermost, the CPU's own, has the vector */
	for (int at = 0; at < 4; at++) {
		parent = BPF_CORE_READ(data, parent_data);
		if (!parent)
			break;
		data = parent;
		r->a[3] = at + 1;
	}
	bpf_probe_read_kernel_str(r->bytes + SECOND, 32, BPF_CORE_READ(data, chip, name));
	apic = BPF_CORE_READ(data, chip_data);
	if (apic && bpf_core_type_exists(struct apic_chip_data)) {
		r->a[1] = BPF_CORE_READ(apic, vector);
		r->a[2] = BPF_CORE_READ(apic, cpu);
	}
	return 0;
}

#define SOFTIRQ(name, KIND)                                                                                            \
	SEC("tp_btf/" #name)                                                                                           \
	int BPF_PROG(name##_seen, unsigned int vector)                                                                 \
	{                                                                                                              \
		struct record *r = begin(KIND, UNTOLD);                                                                \
                                                                                                                       \
		if (r)                                                                                                 \
			r->a[0] = vector;                                                                              \
		return 0;                                                                                              \
	}

SOFTIRQ(softirq_raise, SOFTIRQ_RAISE)
SOFTIRQ(softirq_entry, SOFTIRQ_ENTRY)
SOFTIRQ(softirq_exit, SOFTIRQ_EXIT)

/* -1: this cannot be read here */
static __always_inline u64 interrupt_mask(struct e1000_adapter *adapter)
{
	u8 *registers = BPF_CORE_READ(adapter, hw.hw_addr);
	u32 mask = 0;

	if (!registers || bpf_probe_read_kernel(&mask, sizeof(mask), registers + IMS))
		return UNTOLD;
	return mask;
}

static __always_inline bool is_e1000e(struct net_device___way *device)
{
	u32 number = BPF_CORE_READ(device, ifindex);

	return number && (number == settings.e1000e[0] || number == settings.e1000e[1]);
}

static __always_inline struct e1000_adapter *adapter_of(void *device)
{
	/* netdev_priv: behind the structure, aligned to 32 bytes */
	return device + ((bpf_core_type_size(struct net_device___way) + 31) & ~31u);
}

/* a: vector. Interrupts that are no device's: the timer's, and those of other CPUs. */
#define OTHER_INTERRUPT(name)                                                                                          \
	SEC("tp_btf/" #name)                                                                                           \
	int BPF_PROG(name##_seen, int vector)                                                                          \
	{                                                                                                              \
		struct record *r = begin(VECTOR, UNTOLD);                                                              \
                                                                                                                       \
		if (r)                                                                                                 \
			r->a[0] = vector;                                                                              \
		return 0;                                                                                              \
	}

OTHER_INTERRUPT(local_timer_entry)
OTHER_INTERRUPT(reschedule_entry)
OTHER_INTERRUPT(call_function_entry)
OTHER_INTERRUPT(call_function_single_entry)
OTHER_INTERRUPT(irq_work_entry)

static __always_inline void note_napi(struct record *r, struct napi_struct *polled)
{
	struct napi_struct___way *napi = (void *)polled;
	struct net_device___way *dev = BPF_CORE_READ(napi, dev);

	r->a[0] = (u64)napi;
	r->a[1] = (u64)BPF_CORE_READ(napi, poll);
	r->a[2] = BPF_CORE_READ(napi, weight);
	r->a[5] = (u64)dev;
	r->a[9] = UNTOLD;
	name_of(r, 0, (void *)r->a[1]);
	if (dev) {
		r->a[6] = BPF_CORE_READ(dev, ifindex);
		if (bpf_core_type_exists(struct e1000_adapter) && is_e1000e(dev))
			r->a[9] = interrupt_mask(adapter_of(dev));
		bpf_probe_read_kernel(r->bytes + THIRD - 8, 16, (void *)dev + bpf_core_field_offset(dev->name));
		name_of(r, SECOND, BPF_CORE_READ(dev, netdev_ops));
	}
}

/* a: napi, its poll, its weight, -, -, device, number, -, -, IMS; bytes: names of poll, netdev_ops, device (at 72) */
SEC("kprobe/__napi_schedule")
int BPF_KPROBE(napi_schedule, struct napi_struct *napi)
{
	struct record *r = begin(NAPI_SCHEDULE, FLAGS(ctx));

	if (r)
		note_napi(r, napi);
	return 0;
}

/* the same; a[3]: packets, a[4]: budget. The kernel tells of it when the poll is over. */
SEC("tp_btf/napi_poll")
int BPF_PROG(napi_polled, struct napi_struct *napi, int work, int budget)
{
	struct record *r = begin(NAPI_POLLED, UNTOLD);

	if (r) {
		note_napi(r, napi);
		r->a[3] = work;
		r->a[4] = budget;
	}
	return 0;
}

#define POLL(function, name)                                                                                           \
	SEC("kprobe/" #function)                                                                                       \
	int BPF_KPROBE(name, struct napi_struct *napi)                                                                 \
	{                                                                                                              \
		struct record *r = begin(POLL_BEGINS, FLAGS(ctx));                                                     \
                                                                                                                       \
		if (r)                                                                                                 \
			note_napi(r, napi);                                                                            \
		return 0;                                                                                              \
	}

POLL(e1000e_poll, poll_e1000e)
POLL(virtnet_poll, poll_virtio)
POLL(process_backlog, poll_backlog)

SEC("kprobe/net_rx_action")
int BPF_KPROBE(network_rx)
{
	begin(NETWORK_RX, FLAGS(ctx));
	return 0;
}

/* --- the NIC's ring (e1000e), and its mask of interrupts ------------------------------------------------------------- */

#define IRQ_HANDLER(function, name)                                                                                    \
	SEC("kprobe/" #function)                                                                                       \
	int BPF_KPROBE(name, int irq, void *device)                                                                    \
	{                                                                                                              \
		struct record *r = begin(HANDLER, FLAGS(ctx));                                                         \
                                                                                                                       \
		if (!r)                                                                                                \
			return 0;                                                                                      \
		r->a[0] = irq;                                                                                         \
		r->a[5] = (u64)device;                                                                                 \
		r->a[9] = UNTOLD;                                                                                      \
		if (bpf_core_type_exists(struct e1000_adapter) && is_e1000e(device))                                   \
			r->a[9] = interrupt_mask(adapter_of(device));                                                  \
		return 0;                                                                                              \
	}

IRQ_HANDLER(e1000_intr_msix_rx, handler_msix)
IRQ_HANDLER(e1000_intr_msi, handler_msi)

/* a: napi, -, -, -, packets, device: the poll has found nothing more; interrupts are let in again after this */
SEC("kprobe/napi_complete_done")
int BPF_KPROBE(poll_done, struct napi_struct *polled, int work)
{
	struct napi_struct___way *napi = (void *)polled;
	struct record *r = begin(POLL_ENDS, FLAGS(ctx));

	if (!r)
		return 0;
	r->a[0] = (u64)napi;
	r->a[4] = work;
	r->a[5] = (u64)BPF_CORE_READ(napi, dev);
	return 0;
}

/*
 * a: descriptor (virtual), its bus address, its number, how many there are, the buffer's DMA address, the buffer's
 * virtual address, what the NIC wrote back (status, length), the buffer's physical address, the adapter, IMS.
 * bytes: RAM at the buffer.
 */
#define RING(function, name)                                                                                           \
	SEC("kprobe/" #function)                                                                                       \
	int BPF_KPROBE(name, struct e1000_ring *ring)                                                                  \
	{                                                                                                              \
		struct record *r = begin(RING_READ, FLAGS(ctx));                                                       \
		struct e1000_buffer *buffer;                                                                           \
		u32 next;                                                                                              \
                                                                                                                       \
		if (!r)                                                                                                \
			return 0;                                                                                      \
		next = BPF_CORE_READ(ring, next_to_clean);                                                             \
		r->a[0] = (u64)BPF_CORE_READ(ring, desc) + next * 16;                                                  \
		r->a[1] = BPF_CORE_READ(ring, dma) + next * 16;                                                        \
		r->a[2] = next;                                                                                        \
		r->a[3] = BPF_CORE_READ(ring, count);                                                                  \
		buffer = (void *)BPF_CORE_READ(ring, buffer_info) + next * bpf_core_type_size(struct e1000_buffer);    \
		r->a[4] = BPF_CORE_READ(buffer, dma);                                                                  \
		r->a[5] = (u64)BPF_CORE_READ(buffer, skb, data);                                                       \
		bpf_probe_read_kernel(&r->a[6], 8, (void *)(r->a[0] + 8));                                             \
		r->a[7] = physical((void *)r->a[5]);                                                                   \
		r->a[8] = (u64)BPF_CORE_READ(ring, adapter);                                                           \
		r->a[9] = interrupt_mask((void *)r->a[8]);                                                             \
		bpf_probe_read_kernel(r->bytes, ROOM, (void *)r->a[5]);                                                \
		return 0;                                                                                              \
	}

RING(e1000_clean_rx_irq, ring_read)
RING(e1000_clean_jumbo_rx_irq, ring_read_jumbo)

/* the NE2000, which the CPU empties word by word. a: device, bytes, skb, from where in the NIC's memory */
SEC("kprobe/ne2k_pci_block_input")
int BPF_KPROBE(pio_read, void *device, int count, struct sk_buff *skb, int offset)
{
	struct record *r = begin(PIO_READ, FLAGS(ctx));

	if (r) {
		r->a[5] = (u64)device;
		r->a[1] = count;
		r->a[0] = (u64)skb;
		r->a[2] = offset;
	}
	return 0;
}

/* --- the packet -------------------------------------------------------------------------------------------------------- */

/* a: as note_skb; a[9]: which allocator. The skb is none of a packet yet. */
#define MADE(function, name, number)                                                                                   \
	SEC("kretprobe/" #function)                                                                                    \
	int BPF_KRETPROBE(name, struct sk_buff *skb)                                                                   \
	{                                                                                                              \
		struct record *r = begin(ALLOCATED, UNTOLD);                                                           \
                                                                                                                       \
		if (r) {                                                                                               \
			note_skb(r, skb);                                                                              \
			r->a[9] = number;                                                                              \
		}                                                                                                      \
		return 0;                                                                                              \
	}

MADE(__napi_alloc_skb, made_napi, 1)
MADE(napi_alloc_skb, made_napi_new, 1)
MADE(__netdev_alloc_skb, made_netdev, 2)
MADE(build_skb, made_build, 3)
MADE(napi_build_skb, made_napi_build, 3)
MADE(__alloc_skb, made_alloc, 4)

#define PACKET(function, name, KIND)                                                                                   \
	SEC("kprobe/" #function)                                                                                       \
	int BPF_KPROBE(name, struct sk_buff *skb)                                                                      \
	{                                                                                                              \
		struct record *r = begin(KIND, FLAGS(ctx));                                                            \
                                                                                                                       \
		if (r)                                                                                                 \
			note_frame(r, skb);                                                                            \
		return 0;                                                                                              \
	}

PACKET(eth_type_trans, typed, TYPED)
PACKET(packet_rcv, packet_socket, PACKET_RCV)
PACKET(tpacket_rcv, packet_ring, PACKET_RCV)
PACKET(ip_rcv_core, ip_core, IP_RCV)
PACKET(ip_rcv, ip_first, IP_RCV)
PACKET(ip_local_deliver, ip_local, LOCAL)
PACKET(ip_forward, ip_forwarded, FORWARDED)
PACKET(udp_rcv, udp_first, UDP_RCV)
PACKET(enqueue_to_backlog, backlog, BACKLOG)

SEC("kprobe/napi_gro_receive")
int BPF_KPROBE(gro, struct napi_struct *napi, struct sk_buff *skb)
{
	struct record *r = begin(GRO, FLAGS(ctx));

	if (r)
		note_frame(r, skb);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(stack, struct sk_buff *skb)
{
	struct record *r = begin(STACK, UNTOLD);

	if (r)
		note_frame(r, skb);
	return 0;
}

SEC("tp_btf/netif_rx")
int BPF_PROG(stack_later, struct sk_buff *skb)
{
	struct record *r = begin(NETIF_RX, UNTOLD);

	if (r)
		note_frame(r, skb);
	return 0;
}

/* a clone shares the bytes: its head is that of the first */
SEC("kretprobe/skb_clone")
int BPF_KRETPROBE(cloned, struct sk_buff *skb)
{
	struct record *r = begin(CLONED, UNTOLD);

	if (r)
		note_skb(r, skb);
	return 0;
}

SEC("kprobe/ip_route_input_noref")
int BPF_KPROBE(routed, struct sk_buff *skb, u32 destination, u32 source)
{
	struct record *r = begin(ROUTED, FLAGS(ctx));

	if (r)
		note_frame(r, skb);
	return 0;
}

/* ip_output(net, sk, skb): dst_output leads here */
SEC("kprobe/ip_output")
int BPF_KPROBE(output, void *net, struct sock *sk, struct sk_buff *skb)
{
	struct record *r = begin(OUTPUT, FLAGS(ctx));

	if (r)
		note_frame(r, skb);
	return 0;
}

/* a[9]: hook, and how many functions are registered there << 8 */
SEC("kprobe/nf_hook_slow")
int BPF_KPROBE(hook, struct sk_buff *skb, struct nf_hook_state *given, const struct nf_hook_entries *entries)
{
	struct nf_hook_state___way *state = (void *)given;
	struct record *r = begin(HOOK, FLAGS(ctx));

	if (!r)
		return 0;
	note_frame(r, skb);
	r->a[9] = BPF_CORE_READ(state, hook) | BPF_CORE_READ(entries, num_hook_entries) << 8;
	return 0;
}

/* --- whose it is ----------------------------------------------------------------------------------------------------- */

/* a: source and destination as the registers have them, ports likewise (network order), device */
SEC("kprobe/__udp4_lib_lookup")
int BPF_KPROBE(looked_up, void *net, u32 source, u16 from, u32 destination, u16 to)
{
	struct record *r = begin(LOOKUP, FLAGS(ctx));

	if (!r)
		return 0;
	r->a[0] = (u64)net;
	r->a[1] = source;
	r->a[2] = from;
	r->a[3] = destination;
	r->a[4] = to;
	return 0;
}

/* a: sock, port, inode, queued, room */
SEC("kretprobe/__udp4_lib_lookup")
int BPF_KRETPROBE(sock_found, struct sock *sk)
{
	struct record *r = begin(FOUND_SOCK, UNTOLD);

	if (r)
		note_sock(r, sk);
	return 0;
}

/* the same; a[8]: skb */
#define OF_SOCK(function, name, KIND)                                                                                  \
	SEC("kprobe/" #function)                                                                                       \
	int BPF_KPROBE(name, struct sock *sk, struct sk_buff *skb, int length)                                         \
	{                                                                                                              \
		struct record *r = begin(KIND, FLAGS(ctx));                                                            \
                                                                                                                       \
		if (r) {                                                                                               \
			note_sock(r, sk);                                                                              \
			r->a[8] = (u64)skb;                                                                            \
			r->a[9] = length;                                                                              \
		}                                                                                                      \
		return 0;                                                                                              \
	}

OF_SOCK(udp_queue_rcv_one_skb, queued_udp, UDP_QUEUE)
OF_SOCK(sk_filter_trim_cap, filtered, FILTERED)
OF_SOCK(__udp_enqueue_schedule_skb, enqueued, ENQUEUED)
OF_SOCK(sock_queue_rcv_skb_reason, queued_other, ENQUEUED)
OF_SOCK(sock_def_readable, ready, READY)
OF_SOCK(skb_consume_udp, copied, COPIED)
OF_SOCK(udp_sendmsg, sent_call, SENT_CALL)

/* a: pid of whom; bytes: the name */
SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *task)
{
	struct record *r = begin(WAKING, UNTOLD);

	if (r) {
		r->a[0] = BPF_CORE_READ(task, pid);
		r->a[1] = BPF_CORE_READ(task, tgid);
		bpf_probe_read_kernel(r->bytes, 16, &task->comm);
	}
	return 0;
}

/* a: who leaves, who comes, the leaver's state, physical page table of who comes (0: a kernel thread has none) */
SEC("tp_btf/sched_switch")
int BPF_PROG(switched, bool preempted, struct task_struct *before, struct task_struct *after)
{
	struct task_struct___mm *last = (void *)before, *next = (void *)after;
	struct record *r = begin(SWITCHED, UNTOLD);
	struct mm_struct *mm;

	if (!r)
		return 0;
	r->a[0] = BPF_CORE_READ(last, pid);
	r->a[1] = BPF_CORE_READ(next, pid);
	r->a[2] = BPF_CORE_READ(last, __state);
	mm = BPF_CORE_READ(next, mm);
	r->a[3] = mm ? physical(BPF_CORE_READ(mm, pgd)) : 0;
	r->a[4] = preempted;
	r->a[5] = BPF_CORE_READ(next, tgid);
	bpf_probe_read_kernel(r->bytes, 16, &next->comm);
	return 0;
}

/* a: page table before and after (physical), of which task */
SEC("kprobe/switch_mm_irqs_off")
int BPF_KPROBE(mm_switched, struct mm_struct *before, struct mm_struct *after, struct task_struct *task)
{
	struct record *r = begin(MM_SWITCHED, FLAGS(ctx));

	if (!r)
		return 0;
	r->a[0] = before ? physical(BPF_CORE_READ(before, pgd)) : 0;
	r->a[1] = physical(BPF_CORE_READ(after, pgd));
	r->a[2] = task ? BPF_CORE_READ((struct task_struct___mm *)task, pid) : 0;
	return 0;
}

/* a: the page table that goes into CR3 (physical), the address space's number */
SEC("kprobe/load_new_mm_cr3")
int BPF_KPROBE(cr3_loaded, void *pgd, u16 asid)
{
	struct record *r = begin(CR3_LOADED, FLAGS(ctx));

	if (r) {
		r->a[0] = physical(pgd);
		r->a[1] = asid;
	}
	return 0;
}

/* --- the reader's call ----------------------------------------------------------------------------------------------- */

/* a: as note_skb: what the reader has taken off its queue */
SEC("kretprobe/__skb_recv_udp")
int BPF_KRETPROBE(taken, struct sk_buff *skb)
{
	struct record *r = begin(TAKEN, UNTOLD);

	if (r)
		note_skb(r, skb);
	return 0;
}

/* a: bytes */
SEC("kretprobe/udp_recvmsg")
int BPF_KRETPROBE(received, int bytes)
{
	struct record *r = begin(RECEIVED, UNTOLD);

	if (r)
		r->a[0] = bytes;
	return 0;
}

/* --- the way out, and the end ---------------------------------------------------------------------------------------- */

SEC("tp_btf/net_dev_queue")
int BPF_PROG(device_queue, struct sk_buff *skb)
{
	struct record *r = begin(DEVICE_QUEUE, UNTOLD);

	if (r)
		note_frame(r, skb);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(xmit, struct sk_buff *skb, struct net_device *device)
{
	struct record *r = begin(XMIT, UNTOLD);

	if (r)
		note_frame(r, skb);
	return 0;
}

/* a[9]: why, as the kernel numbers it */
SEC("tp_btf/kfree_skb")
int BPF_PROG(killed, struct sk_buff *skb, void *location, int reason)
{
	struct record *r = begin(KILLED, UNTOLD);

	if (r) {
		note_frame(r, skb);
		r->a[9] = reason;
	}
	return 0;
}
