/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The few kernel types that the programs look into. Only the named members are used; libbpf finds their offsets in the
 * running kernel's BTF (CO-RE), so nothing here has to match a kernel's layout, and building needs no kernel headers.
 */
#pragma once

#define __VMLINUX_H__ /* pt_regs has the kernel's member names here, not those of the user's headers */
#include <linux/bpf.h>
#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define false 0
#define true 1

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, r10, r8, r9, ax, orig_ax, cx, sp, ip;
};
#define SYSCALL_NUMBER(regs) ((long)(regs)->orig_ax)
#define SYSCALL_ARG2(regs) ((regs)->si)
#define SYSCALL_ARG3(regs) ((regs)->dx)
#define SYSCALL_FUNCTION "__x64_sys_" /* what the kernel's table of system calls leads to */
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
	int syscallno;
};
#define SYSCALL_NUMBER(regs) ((long)(regs)->syscallno)
#define SYSCALL_ARG2(regs) ((regs)->regs[1])
#define SYSCALL_ARG3(regs) ((regs)->regs[2])
#define SYSCALL_FUNCTION "__arm64_sys_"
#endif

struct page {
	unsigned long flags;
};

struct net_device;
struct net;

struct in6_addr {
	u32 s6_addr32[4]; /* within its union in_6u; read whole, by address */
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct ns_common {
	unsigned int inum;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	u16 skc_num;   /* our port, host order */
	__be16 skc_dport;
	u16 skc_family;
	u32 skc_daddr, skc_rcv_saddr;
	u32 skc_hash; /* UDP: skc_u16hashes, by port and by address and port */
	volatile unsigned char skc_state;
	u8 skc_reuse : 4, skc_reuseport : 1, skc_ipv6only : 1;
	int skc_bound_dev_if, skc_incoming_cpu;
	struct hlist_node skc_node, skc_portaddr_node; /* skc_node shares its place with skc_nulls_node */
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct sock_reuseport;
struct socket;

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
	struct socket *sk_socket;
	kuid_t sk_uid;
	struct sock_reuseport *sk_reuseport_cb;
};

struct socket {
	struct sock *sk;
};

/* struct bio_vec up to 6.8, with a netmem_ref for the page afterwards: the same three in both */
struct skb_frag {
	u64 page;
	u32 length, offset;
};

struct skb_shared_info {
	u8 nr_frags;
	struct skb_frag frags[1];
};

struct sk_buff {
	char cb[48];
	unsigned int len, data_len;
	u16 network_header;
	u16 mac_header;
	u32 end; /* an offset from head on every 64-bit kernel */
	unsigned char *head, *data;
	unsigned long _skb_refdst;
};

struct task_struct {
	int pid, tgid;
	unsigned int flags;
	char comm[16];
};

struct msghdr {
	unsigned int msg_flags;
};

struct nf_hook_state;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

struct tcp_zerocopy_receive {
	u64 address; /* where the user wants the pages */
	u32 length;  /* bytes mapped */
};

struct xdp_buff {
	void *data, *data_end;
};

struct seq_file;

/* what an iterator's program is given, among others */
struct bpf_iter_meta {
	struct seq_file *seq;
};

struct xdp_sock;
struct napi_struct;
struct ib_cq;
struct ib_qp;
struct rxe_mr;
struct rxe_cq;
struct rxe_cqe;
struct rxe_pkt_info;
struct rxe_qp;

struct irqaction {
	unsigned int irq;
	void *handler;
	void *dev_id;
	const char *name;
};

struct sk_buff_head {
	u32 qlen;
};

struct inode {
	unsigned long i_ino;
};

#pragma clang attribute pop

#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
