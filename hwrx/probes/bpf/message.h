/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Whose message is this skb? From the IP header on, by the payload's magic and sequence number
 * (cython_ext/core/payload.pxd), for UDP, TCP and RoCE v2 over IPv4 with or without options and IPv6 with or without
 * extension headers.
 */
#pragma once
#include "kernel.h"

#define MAGIC 0x78727768u /* "hwrx", little-endian */
#define PORT_ROCE 4791
#define ETHERNET 14 /* bytes of its header */
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS 60
#define PAGE_SHIFT 12

/* what user space tells the programs; see struct Settings in tracer.pyx */
struct settings {
	u32 sample_every; /* timelines: each n-th message; 0: none */
	u32 size;         /* bytes of a message; 0: not known */
	u32 trial;        /* only this trial's messages ... */
	u32 any_trial;    /* ... unless this is set */
	u32 time_mask;    /* only messages whose number has none of these bits are timed; all are counted */
	u32 unused;
};

struct settings settings = {.any_trial = 1};

/* Set before loading; see tracer.pyx. */
struct machine {
	/*
	 * The payload of TCP lies in pages, and to read it the page has to be found in the kernel's map of all memory.
	 * Addresses of the kernel's variables page_offset_base and vmemmap_base, or with `constant` their values (x86
	 * without a randomised layout); 0: not known, so paged payloads cannot be told.
	 */
	u64 page_offset_base, vmemmap_base;
	u32 constant;
	u32 holds; /* whether a program is loaded that leaves something in a thread for the first skb stage */
	u32 exits; /* whether one is that sees receive calls return */
	u32 contexts; /* whether those are that tell when softirqs run */
};

const volatile struct machine machine = {};

struct layout {
	u64 page_offset, vmemmap;
};

struct layout layout = {};

struct message {
	u64 sequence;
	u64 skb;
	u64 payload; /* kernel address of its first byte */
	s64 send_ns; /* from the payload; 0 where the message is too short to carry it */
	u32 trial;
	u32 flow;     /* tells the directions apart: both ports, or the RoCE destination */
	u32 length;   /* payload bytes in this packet */
	u32 position; /* TCP: sequence number of the first of them */
};

struct head {
	u32 magic;
	u64 sequence;
	u32 trial;
	s64 send_ns;
} __attribute__((packed));

/* what stands in skb_shared_info.frags */
struct fragment {
	u64 page;
	u32 length, offset;
};

/* Fill in sequence, trial and send time from a payload's first bytes; whether it is a message of ours. */
static __always_inline bool recognise(const struct head *head, u32 length, struct message *m)
{
	if (head->magic != MAGIC || length < 8)
		return false;
	m->sequence = length >= 12 ? head->sequence : (u32)head->sequence;
	m->trial = length >= 16 ? head->trial : settings.trial;
	m->send_ns = length >= 32 ? head->send_ns : 0;
	return settings.any_trial || m->trial == settings.trial;
}

/* How many bytes of RoCE headers stand between UDP's and the payload; 0 where the packet starts no message. */
static __always_inline u32 roce_headers(u8 opcode)
{
	switch (opcode) {
	case 0x00: /* RC SEND first */
	case 0x04: /* RC SEND only */
		return 12;
	case 0x05: /* RC SEND only with immediate */
		return 16;
	case 0x06: /* RC WRITE first */
	case 0x0a: /* RC WRITE only */
		return 28;
	case 0x0b: /* RC WRITE only with immediate */
		return 32;
	case 0x0d: /* RC READ response first */
	case 0x10: /* RC READ response only */
		return 16;
	case 0x64: /* UD SEND only */
		return 20;
	case 0x65: /* UD SEND only with immediate */
		return 24;
	}
	return 0;
}

/* The same for the packets that go on with a message: middle and last. */
static __always_inline u32 roce_continues(u8 opcode)
{
	switch (opcode) {
	case 0x01: /* SEND middle */
	case 0x02: /* SEND last */
	case 0x07: /* WRITE middle */
	case 0x08: /* WRITE last */
	case 0x0e: /* READ response middle */
		return 12;
	case 0x03: /* SEND last with immediate */
	case 0x09: /* WRITE last with immediate */
	case 0x0f: /* READ response last (AETH) */
		return 16;
	}
	return 0;
}

enum parsed {
	FOREIGN = 0,
	STARTS = 1,    /* the packet starts with a message */
	CONTINUES = 2, /* RoCE: it belongs to the message that its queue pair is at; only flow, payload and length are set */
};

/* The kernel address of a byte in a page; 0 where the machine's layout is not known. */
static __always_inline u64 page_address(u64 page, u32 offset)
{
	u64 base, map;

	if (!machine.vmemmap_base)
		return 0;
	if (machine.constant) {
		base = machine.page_offset_base;
		map = machine.vmemmap_base;
	} else {
		if (!layout.vmemmap) {
			bpf_probe_read_kernel(&layout.page_offset, 8, (void *)machine.page_offset_base);
			bpf_probe_read_kernel(&layout.vmemmap, 8, (void *)machine.vmemmap_base);
		}
		base = layout.page_offset;
		map = layout.vmemmap;
	}
	return base + ((page - map) / bpf_core_type_size(struct page) << PAGE_SHIFT) + offset;
}

/* what parse_packet needs of an skb */
struct packet {
	u64 skb, head, data;
	u32 network, end, length, paged;
};

/*
 * What is this packet? Reads the network header where the skb says it is. The headers are taken to be linear, as the
 * stack has them pulled by then; the payload may be in the first fragment.
 *
 * This function and record_at are global: the verifier looks at them once a program instead of once a call.
 */
__noinline int parse_packet(const struct packet *p, struct message *m)
{
	u64 at, linear_end, payload;
	u32 l4_length, roce = 0, daddr;
	struct {
		u8 ip[40];
		u8 more[24];
	} b;
	struct {
		__be16 sport, dport;
		__be32 word1, word2;
		u8 offset;
		u8 rest[7];
	} l4;
	struct head head;
	u8 protocol, version;
	bool plain; /* IPv4 without options: one read has brought its headers, and UDP's payload too */
	int result = STARTS;

	if (!p || !m)
		return FOREIGN;
	at = p->head + p->network;
	if (bpf_probe_read_kernel(&b, sizeof(b), (void *)at))
		return FOREIGN;
	version = b.ip[0] >> 4;
	plain = b.ip[0] == 0x45;
	if (version == 4) {
		/* a later fragment carries no header of ours */
		if ((b.ip[6] & 0x1f) | b.ip[7])
			return FOREIGN;
		protocol = b.ip[9];
		daddr = *(u32 *)&b.ip[16];
		at += (b.ip[0] & 15) * 4;
	} else if (version == 6) {
		protocol = b.ip[6];
		daddr = *(u32 *)&b.ip[36];
		at += 40;
		if (protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_DSTOPTS) {
			protocol = b.more[0];
			at += (b.more[1] + 1) * 8;
		} else if (protocol == IPPROTO_FRAGMENT) {
			if (b.more[2] | (b.more[3] & 0xf8))
				return FOREIGN;
			protocol = b.more[0];
			at += 8;
		}
	} else {
		return FOREIGN;
	}
	if (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)
		return FOREIGN;
	if (plain)
		__builtin_memcpy(&l4, &b.ip[20], sizeof(l4));
	else if (bpf_probe_read_kernel(&l4, sizeof(l4), (void *)at))
		return FOREIGN;
	if (protocol == IPPROTO_TCP)
		l4_length = (l4.offset >> 4) * 4;
	else
		l4_length = 8;
	m->flow = (u32)bpf_ntohs(l4.sport) << 16 | bpf_ntohs(l4.dport);
	m->position = protocol == IPPROTO_TCP ? bpf_ntohl(l4.word1) : 0;
	if (protocol == IPPROTO_UDP && l4.dport == bpf_htons(PORT_ROCE)) {
		/* BTH: opcode at 0, destination queue pair at 5..7; two devices of one kernel number their pairs alike */
		u8 opcode = *(u8 *)&l4.word2;

		roce = roce_headers(opcode);
		if (!roce) {
			roce = roce_continues(opcode);
			result = CONTINUES;
		}
		if (!roce)
			return FOREIGN;
		m->flow = ((u32)l4.rest[0] << 16 | (u32)l4.rest[1] << 8 | l4.rest[2]) ^ (daddr * 2654435761u);
		m->flow |= 1u << 31;
		l4_length = 8 + roce;
	}
	payload = at + l4_length;
	m->skb = p->skb;
	linear_end = p->data + p->length - p->paged;
	/* bytes from `data` to the packet's end, less the headers that still stand between `data` and the payload */
	m->length = p->length - (u32)(payload - p->data);
	if (roce)
		m->length -= 4; /* the ICRC; padding to four bytes counts as payload */
	if (m->length > 1 << 20) {
		m->length = 0;
		return FOREIGN; /* nothing behind the headers */
	}
	if (payload >= linear_end) {
		plain = false;
		/* paged: headers are linear, so the payload begins in the first fragment */
		u64 info = p->head + p->end;
		struct fragment frag;

		if (!p->paged)
			return FOREIGN;
		info += __builtin_preserve_field_info(((struct skb_shared_info *)0)->frags, 0 /* BYTE_OFFSET */);
		if (bpf_probe_read_kernel(&frag, sizeof(frag), (void *)info))
			return FOREIGN;
		payload = page_address(frag.page, frag.offset + (u32)(payload - linear_end));
		if (!payload)
			return FOREIGN;
	}
	m->payload = payload;
	if (result == CONTINUES)
		return CONTINUES;
	if (plain && l4_length == 8)
		__builtin_memcpy(&head, &b.ip[28], sizeof(head));
	else if (bpf_probe_read_kernel(&head, sizeof(head), (void *)payload))
		return FOREIGN;
	return recognise(&head, m->length, m) ? STARTS : FOREIGN;
}

static __always_inline int parse_from(struct sk_buff *skb, u32 network, struct message *m)
{
	struct packet p = {
		.skb = (u64)skb,
		.head = (u64)skb->head,
		.data = (u64)skb->data,
		.network = network,
		.end = skb->end,
		.length = skb->len,
		.paged = skb->data_len,
	};

	__builtin_memset(m, 0, sizeof(*m));
	return parse_packet(&p, m);
}

static __always_inline int parse(struct sk_buff *skb, struct message *m)
{
	return parse_from(skb, skb->network_header, m);
}

/* The same of an skb whose network header is where its data begin. */
static __always_inline int parse_at_data(struct sk_buff *skb, struct message *m)
{
	return parse_from(skb, (u32)((u64)skb->data - (u64)skb->head), m);
}

/* The same of a whole Ethernet frame in memory. */
static __always_inline int parse_frame(const void *frame, u32 length, struct message *m)
{
	struct packet p = {
		.head = (u64)frame,
		.data = (u64)frame,
		.network = ETHERNET,
		.length = length,
	};

	__builtin_memset(m, 0, sizeof(*m));
	return parse_packet(&p, m);
}
