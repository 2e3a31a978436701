/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The kernel's socket tables, read: where they are, how large, with what seed (`geometry`); the sockets of a namespace
 * and where each really hangs (the two iterators); one chain from its head to its end (`walk`). Nothing is held while
 * reading, so user space reads twice where it matters.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define FOUND 131072 /* entries that one walk can bring */
#define AF_INET6 10
#define INET_FLAGS_MC_ALL 14  /* include/net/inet_sock.h since 6.7, in an enum without a name */
#define INET_FLAGS_MC6_ALL 22 /* the same */
#define MEMBERSHIPS 4096      /* of one socket that are looked through */
#define TCP_TIME_WAIT 6
#define TCP_LISTENS 10
#define TCP_NEW_SYN_RECV 12

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_head {
	struct hlist_node *first;
};

struct hlist_nulls_head {
	void *first;
};

struct udp_hslot {
	struct hlist_head head;
	int count;
};

struct udp_hslot_main { /* the second table's slots since 6.13 */
	struct udp_hslot hslot;
};

struct udp_table {
	void *hash, *hash2, *hash4;
	unsigned int mask;
};

struct inet_ehash_bucket {
	struct hlist_nulls_head chain;
};

struct inet_listen_hashbucket {
	struct hlist_nulls_head nulls_head; /* since 5.19; a list without a number before */
};

struct inet_hashinfo {
	void *ehash, *lhash2;
	unsigned int ehash_mask, lhash2_mask;
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo; /* since 6.1 */
};

struct netns_ipv4 {
	struct udp_table *udp_table; /* since 6.2; before, one for all namespaces */
	struct inet_timewait_death_row tcp_death_row;
};

struct net {
	u32 hash_mix;
	struct ns_common ns;
	struct netns_ipv4 ipv4;
};

struct net_protocol {
	u32 secret; /* since 6.9 some of the secrets live in what every packet touches anyway */
};

struct inet6_protocol {
	u32 secret;
};

struct net_offload {
	u32 secret;
};

struct net_hotdata {
	struct net_protocol tcp_protocol, udp_protocol;
	struct inet6_protocol tcpv6_protocol, udpv6_protocol;
	struct net_offload tcpv6_offload, udpv6_offload;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct___ns {
	struct nsproxy *nsproxy;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct bpf_prog;

struct sock_reuseport {
	u16 num_socks;
	unsigned int has_conns : 1;
	unsigned int incoming_cpu; /* members that have stated one; since 6.2 */
	struct bpf_prog *prog;
	struct sock *socks[0];
};

struct ip_mreqn {
	struct {
		u32 s_addr;
	} imr_multiaddr;
	int imr_ifindex;
};

struct ip_sf_socklist {
	unsigned int sl_count;
	u32 sl_addr[0];
};

struct ip_mc_socklist {
	struct ip_mc_socklist *next_rcu;
	struct ip_mreqn multi;
	unsigned int sfmode;
	struct ip_sf_socklist *sflist;
};

struct ip6_sf_socklist {
	unsigned int sl_count;
	struct in6_addr sl_addr[0];
};

struct ipv6_mc_socklist {
	struct in6_addr addr;
	unsigned int sfmode;
	struct ipv6_mc_socklist *next;
	struct ip6_sf_socklist *sflist;
};

struct ipv6_pinfo {
	u8 mc_all : 1; /* until 6.6; a bit of inet_flags since */
	struct ipv6_mc_socklist *ipv6_mc_list;
};

struct inet_sock {
	struct ipv6_pinfo *pinet6;
	unsigned long inet_flags; /* since 6.6 */
	u8 mc_all : 1;		  /* until 6.6 */
	struct ip_mc_socklist *mc_list;
};

struct hlist_nulls_node {
	struct hlist_nulls_node *next, **pprev;
};

struct udp_sock {
	struct hlist_nulls_node udp_lrpa_node; /* on the table by four values, since 6.13 */
};

struct bpf_prog_array;

struct netns_bpf {
	struct bpf_prog_array *run_array[2];
};

struct net___bpf {
	struct netns_bpf bpf;
};

struct socket_cookie {
	s64 counter;
};

struct sock_common___more {
	struct socket_cookie skc_cookie;
	struct sock *skc_listener;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct sock *udp_sk;
	unsigned int uid;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	unsigned int uid;
};

#pragma clang attribute pop

/* One table of chains; see KINDS in hwrx/lookup/table.py */
enum kind { UDP_PORT, UDP_ADDRESS, TCP_ESTABLISHED, TCP_LISTEN, UDP_FOUR, GROUP, KINDS };

struct table {
	u64 base; /* 0: this kernel has none that we know */
	u32 mask, stride, head; /* bytes from slot to slot, and from a slot to its list's head */
	u32 pad;
};

/* Addresses of kernel variables, found by user space; 0: not known. */
struct symbols {
	u64 udp_table, tcp_hashinfo, net_hotdata;
	u64 secrets[6]; /* TCP: four values, IPv6's, its address; UDP the same */
};

const volatile struct symbols symbols = {};

struct geometry {
	u32 hash_mix, namespace;
	struct table tables[KINDS];
	u32 secrets[6];
	u32 known; /* a bit for each secret that could be read */
	u32 four;  /* whether connected UDP sockets have a table of their own (hash4) */
	u32 redirected; /* whether a BPF program of the namespace (sk_lookup) may choose another socket */
	u32 rechosen; /* whether a group chooses anew for what UDP's early demux has found */
};

struct entry {
	u64 sk, inode;
	u64 group, chooser; /* SO_REUSEPORT: the group, and the program that chooses in it; 0: none */
	u64 cookie, listener; /* 0: none yet; the listener that a request for a connection came to */
	u32 address[4], peer[4];
	u32 address4, peer4; /* what IPv4's lookup compares, of an IPv6 socket too */
	u32 hash, namespace, uid;
	u32 group_cpus; /* members of the group that have stated a CPU (SO_INCOMING_CPU) */
	u32 sources;	/* in the filter of its membership in the group that was asked for */
	u16 port, peer_port, family, protocol;
	u8 state, reuseport, only6, reuse;
	u8 has_conns, mc_all, mc6_all; /* whether the group has connected members; IP_MULTICAST_ALL, IPV6_MULTICAST_ALL */
	u8 joined, include, listed; /* the group that was asked for: a member, of listed sources only, this one is listed */
	s64 device, cpu;
	/* where the iterators found it: in its tables, with how many before it on the chain; -1: nowhere */
	s64 slot[3];
	u32 before[3];
};

/* What the iterators are asked for; written by user space, which reads the geometry first. */
struct wanted {
	struct geometry geometry;
	u32 port; /* 0: all */
	u32 family; /* of the multicast group whose members are asked for; 0: none is */
	u32 group[4], source[4];
	u32 device;
};

struct wanted wanted = {};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FOUND);
	__type(key, u32);
	__type(value, struct entry);
} found SEC(".maps");

/* --- one socket ----------------------------------------------------------------------------------------------------- */

static __always_inline void describe(struct sock_common *common, struct entry *e)
{
	struct sock *sk = (struct sock *)common;
	struct sock_reuseport *group;
	struct socket *socket;
	u8 state = BPF_CORE_READ(common, skc_state);

	e->sk = (u64)common;
	e->family = BPF_CORE_READ(common, skc_family);
	e->port = BPF_CORE_READ(common, skc_num);
	e->peer_port = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
	e->state = state;
	e->hash = BPF_CORE_READ(common, skc_hash);
	e->reuseport = BPF_CORE_READ_BITFIELD_PROBED(common, skc_reuseport);
	e->reuse = BPF_CORE_READ_BITFIELD_PROBED(common, skc_reuse);
	e->only6 = BPF_CORE_READ_BITFIELD_PROBED(common, skc_ipv6only);
	e->device = BPF_CORE_READ(common, skc_bound_dev_if);
	e->namespace = BPF_CORE_READ(common, skc_net.net, ns.inum);
	if (e->family == AF_INET6) {
		bpf_core_read(e->address, sizeof(e->address), &common->skc_v6_rcv_saddr);
		bpf_core_read(e->peer, sizeof(e->peer), &common->skc_v6_daddr);
	} else {
		e->address[0] = BPF_CORE_READ(common, skc_rcv_saddr);
		e->peer[0] = BPF_CORE_READ(common, skc_daddr);
	}
	e->address4 = BPF_CORE_READ(common, skc_rcv_saddr);
	e->peer4 = BPF_CORE_READ(common, skc_daddr);
	e->cookie = BPF_CORE_READ((struct sock_common___more *)common, skc_cookie.counter);
	e->cpu = -1;
	if (state == TCP_NEW_SYN_RECV)
		e->listener = (u64)BPF_CORE_READ((struct sock_common___more *)common, skc_listener);
	/* the two small kinds end with the common part; a request for a connection and one that is over have no owner */
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return;
	e->cpu = BPF_CORE_READ(common, skc_incoming_cpu);
	e->protocol = BPF_CORE_READ(sk, sk_protocol);
	e->uid = BPF_CORE_READ(sk, sk_uid.val);
	group = BPF_CORE_READ(sk, sk_reuseport_cb);
	e->group = (u64)group;
	if (group) {
		e->chooser = (u64)BPF_CORE_READ(group, prog);
		e->has_conns = BPF_CORE_READ_BITFIELD_PROBED(group, has_conns);
		if (bpf_core_field_exists(group->incoming_cpu))
			e->group_cpus = BPF_CORE_READ(group, incoming_cpu);
	}
	socket = BPF_CORE_READ(sk, sk_socket);
	if (socket)
		e->inode = BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino);
}

/* --- who is in a multicast group: ip_mc_sf_allow, inet6_mc_check ------------------------------------------------------ */

struct joining {
	u64 node, sources; /* the membership, and its sources' list */
	u32 count, listed;
	u32 found, include;
};

static long next_membership(u32 index, struct joining *j)
{
	struct ip_mc_socklist *four = (void *)j->node;
	struct ipv6_mc_socklist *six = (void *)j->node;
	u32 group[4] = {};

	if (!j->node)
		return 1;
	if (wanted.family == AF_INET6) {
		bpf_core_read(group, sizeof(group), &six->addr);
		if (group[0] == wanted.group[0] && group[1] == wanted.group[1] && group[2] == wanted.group[2] &&
		    group[3] == wanted.group[3]) { /* IPv6 does not ask for the device */
			j->found = 1;
			j->include = BPF_CORE_READ(six, sfmode);
			j->sources = (u64)BPF_CORE_READ(six, sflist);
			return 1;
		}
		j->node = (u64)BPF_CORE_READ(six, next);
		return 0;
	}
	if (BPF_CORE_READ(four, multi.imr_multiaddr.s_addr) == wanted.group[0] &&
	    BPF_CORE_READ(four, multi.imr_ifindex) == wanted.device) {
		j->found = 1;
		j->include = BPF_CORE_READ(four, sfmode);
		j->sources = (u64)BPF_CORE_READ(four, sflist);
		return 1;
	}
	j->node = (u64)BPF_CORE_READ(four, next_rcu);
	return 0;
}

static long next_source(u32 index, struct joining *j)
{
	struct ip_sf_socklist *four = (void *)j->sources;
	struct ip6_sf_socklist *six = (void *)j->sources;
	u32 source[4] = {};

	if (index >= j->count)
		return 1;
	if (wanted.family == AF_INET6)
		bpf_probe_read_kernel(source, 16, (void *)(j->sources + bpf_core_field_offset(six->sl_addr) + index * 16));
	else
		bpf_probe_read_kernel(source, 4, (void *)(j->sources + bpf_core_field_offset(four->sl_addr) + index * 4));
	j->listed = source[0] == wanted.source[0] && source[1] == wanted.source[1] &&
		    source[2] == wanted.source[2] && source[3] == wanted.source[3];
	return j->listed;
}

static __noinline int describe_membership(struct entry *e)
{
	struct inet_sock *inet = (void *)e->sk;
	struct ipv6_pinfo *six = BPF_CORE_READ(inet, pinet6);
	struct ip_sf_socklist *sources4;
	struct ip6_sf_socklist *sources6;
	struct joining j = {};

	if (!e->sk)
		return 0;
	if (bpf_core_field_exists(inet->mc_all)) {
		e->mc_all = BPF_CORE_READ_BITFIELD_PROBED(inet, mc_all);
		if (e->family == AF_INET6)
			e->mc6_all = BPF_CORE_READ_BITFIELD_PROBED(six, mc_all);
	} else {
		unsigned long flags = BPF_CORE_READ(inet, inet_flags);

		e->mc_all = flags >> INET_FLAGS_MC_ALL & 1;
		e->mc6_all = flags >> INET_FLAGS_MC6_ALL & 1;
	}
	if (wanted.family != AF_INET6)
		j.node = (u64)BPF_CORE_READ(inet, mc_list);
	else if (e->family == AF_INET6)
		j.node = (u64)BPF_CORE_READ(six, ipv6_mc_list);
	bpf_loop(MEMBERSHIPS, next_membership, &j, 0);
	sources4 = (void *)j.sources;
	sources6 = (void *)j.sources;
	if (sources4) {
		j.count = wanted.family == AF_INET6 ? BPF_CORE_READ(sources6, sl_count)
						    : BPF_CORE_READ(sources4, sl_count);
		bpf_loop(MEMBERSHIPS, next_source, &j, 0);
	}
	e->joined = j.found;
	e->include = j.include;
	e->sources = j.count;
	e->listed = j.listed;
	return 0;
}

/* --- where the tables are ------------------------------------------------------------------------------------------- */

#define SECRET(g, which, member)                                                                       \
	do {                                                                                           \
		struct net_hotdata *hot = (void *)symbols.net_hotdata;                                 \
		void *at = (void *)symbols.secrets[which];                                             \
		u32 value = 0; /* a helper may not write into the context */                           \
                                                                                                       \
		if (hot && bpf_core_field_exists(hot->member.secret))                                  \
			at = (void *)&hot->member.secret;                                              \
		if (at && !bpf_probe_read_kernel(&value, sizeof(value), at))                           \
			g->known |= 1 << which;                                                        \
		g->secrets[which] = value;                                                             \
	} while (0)

static __always_inline void place(struct table *t, void *base, u32 mask, u32 stride, u32 head)
{
	t->base = (u64)base;
	t->mask = mask;
	t->stride = stride;
	t->head = head;
}

SEC("syscall")
int geometry(struct geometry *g)
{
	struct task_struct___ns *task = (void *)bpf_get_current_task();
	struct net *net = BPF_CORE_READ(task, nsproxy, net_ns);
	struct udp_table *udp = (void *)symbols.udp_table;
	struct inet_hashinfo *tcp = (void *)symbols.tcp_hashinfo;
	u32 stride = bpf_core_type_size(struct udp_hslot);

	g->hash_mix = BPF_CORE_READ(net, hash_mix);
	g->namespace = BPF_CORE_READ(net, ns.inum);
	if (bpf_core_field_exists(net->ipv4.udp_table))
		udp = BPF_CORE_READ(net, ipv4.udp_table);
	if (udp) {
		place(&g->tables[UDP_PORT], BPF_CORE_READ(udp, hash), BPF_CORE_READ(udp, mask), stride,
		      bpf_core_field_offset(struct udp_hslot, head));
		if (bpf_core_type_exists(struct udp_hslot_main))
			stride = bpf_core_type_size(struct udp_hslot_main);
		place(&g->tables[UDP_ADDRESS], BPF_CORE_READ(udp, hash2), BPF_CORE_READ(udp, mask), stride,
		      bpf_core_field_offset(struct udp_hslot, head));
		g->four = bpf_core_field_exists(udp->hash4);
		if (bpf_core_field_exists(udp->hash4))
			place(&g->tables[UDP_FOUR], BPF_CORE_READ(udp, hash4), BPF_CORE_READ(udp, mask),
			      bpf_core_type_size(struct udp_hslot), bpf_core_field_offset(struct udp_hslot, head));
	}
	/*
	 * inet_steal_sock chooses among a SO_REUSEPORT group again for a socket without a reference (since 6.6, commit
	 * 9c02bec95954), and such is UDP's early demux since 6.9, which brought net_hotdata, too.
	 */
	g->rechosen = bpf_core_type_exists(struct net_hotdata);
	/* enum netns_bpf_attach_type: NETNS_BPF_FLOW_DISSECTOR, NETNS_BPF_SK_LOOKUP */
	if (bpf_core_field_exists(((struct net___bpf *)net)->bpf))
		g->redirected = BPF_CORE_READ((struct net___bpf *)net, bpf.run_array[1]) != 0;
	if (bpf_core_field_exists(net->ipv4.tcp_death_row.hashinfo))
		tcp = BPF_CORE_READ(net, ipv4.tcp_death_row.hashinfo);
	if (tcp) {
		place(&g->tables[TCP_ESTABLISHED], BPF_CORE_READ(tcp, ehash), BPF_CORE_READ(tcp, ehash_mask),
		      bpf_core_type_size(struct inet_ehash_bucket), 0);
		if (bpf_core_field_exists(struct inet_listen_hashbucket, nulls_head))
			place(&g->tables[TCP_LISTEN], BPF_CORE_READ(tcp, lhash2), BPF_CORE_READ(tcp, lhash2_mask),
			      bpf_core_type_size(struct inet_listen_hashbucket),
			      bpf_core_field_offset(struct inet_listen_hashbucket, nulls_head));
	}
	SECRET(g, 0, tcp_protocol);
	SECRET(g, 1, tcpv6_protocol);
	SECRET(g, 2, tcpv6_offload);
	SECRET(g, 3, udp_protocol);
	SECRET(g, 4, udpv6_protocol);
	SECRET(g, 5, udpv6_offload);
	return 0;
}

/* --- one chain, from its head --------------------------------------------------------------------------------------- */

struct walk {
	u64 head; /* address of the list's head, or of the group */
	u32 kind, limit;
	u32 count; /* entries that were written */
	u32 cut;   /* whether the chain goes on behind `limit` */
	u64 end;   /* what stood in the last `next`: 0, or the odd value that names the chain */
};

struct position {
	u64 node;
	u32 offset, limit, count, group;
};

static long step(u32 index, struct position *p)
{
	struct entry *e;
	u32 key = p->count;
	u64 next = 0;

	/* a list that knows its own number ends with it, shifted up and made odd; the other with nothing */
	if (!p->node || p->node & 1 || p->count >= p->limit)
		return 1;
	e = bpf_map_lookup_elem(&found, &key);
	if (!e)
		return 1;
	__builtin_memset(e, 0, sizeof(*e));
	if (p->group) {
		bpf_probe_read_kernel(&next, sizeof(next), (void *)p->node);
		describe((struct sock_common *)next, e);
		p->node += sizeof(u64);
	} else {
		describe((struct sock_common *)(p->node - p->offset), e);
		bpf_probe_read_kernel(&next, sizeof(next), (void *)p->node);
		p->node = next;
	}
	p->count++;
	return 0;
}

static __always_inline u32 node_offset(u32 kind)
{
	if (kind == UDP_FOUR)
		return bpf_core_field_exists(((struct udp_sock *)0)->udp_lrpa_node)
			       ? bpf_core_field_offset(struct udp_sock, udp_lrpa_node)
			       : 0;
	return kind == UDP_ADDRESS ? bpf_core_field_offset(struct sock_common, skc_portaddr_node)
				   : bpf_core_field_offset(struct sock_common, skc_node);
}

SEC("syscall")
int walk(struct walk *w)
{
	struct position p = {.limit = w->limit};
	struct sock_reuseport *group = (void *)w->head;

	if (p.limit > FOUND)
		p.limit = FOUND;
	if (w->kind == GROUP) {
		u32 members = BPF_CORE_READ(group, num_socks);

		p.group = 1;
		p.node = w->head + bpf_core_field_offset(struct sock_reuseport, socks);
		if (members < p.limit)
			p.limit = members;
	} else {
		p.offset = node_offset(w->kind);
		bpf_probe_read_kernel(&p.node, sizeof(p.node), (void *)w->head);
	}
	bpf_loop(FOUND, step, &p, 0);
	w->count = p.count;
	w->end = p.node;
	w->cut = !p.group && p.node && !(p.node & 1);
	return 0;
}

/* --- all sockets of the namespace, and where each hangs ------------------------------------------------------------- */

struct climb {
	u64 at; /* address of whatever points to the node: a slot's head, or `next` of the node before, which is that node */
	u64 base, end;
	u32 before;
	u32 home;
};

static long up(u32 index, struct climb *c)
{
	struct hlist_node *node = (void *)c->at;

	if (c->at >= c->base && c->at < c->end) {
		c->home = 1;
		return 1;
	}
	if (!c->at)
		return 1;
	c->at = (u64)BPF_CORE_READ(node, pprev);
	c->before++;
	return 0;
}

/* Back along a chain to its head, which lies in the table: that says on which slot the socket really is. */
static __noinline int locate(struct entry *e, u32 which, u32 kind)
{
	struct hlist_node *node;
	struct climb c = {};
	struct table *t;

	if (kind >= GROUP || which > 2)
		return 0;
	t = &wanted.geometry.tables[kind];
	e->slot[which] = -1;
	if (!t->base || !t->stride)
		return 0;
	c.base = t->base;
	c.end = t->base + ((u64)t->mask + 1) * t->stride;
	node = (void *)(e->sk + node_offset(kind));
	c.at = (u64)BPF_CORE_READ(node, pprev);
	bpf_loop(FOUND, up, &c, 0);
	if (!c.home)
		return 0;
	e->slot[which] = (c.at - c.base) / t->stride;
	e->before[which] = c.before;
	return 0;
}

static __always_inline int visit(struct bpf_iter_meta *meta, struct sock_common *common, u32 first, u32 second,
				 u32 third)
{
	struct entry e = {};

	if (!common || (wanted.port && BPF_CORE_READ(common, skc_num) != wanted.port))
		return 0;
	describe(common, &e);
	e.slot[1] = e.slot[2] = -1;
	locate(&e, 0, e.state == TCP_LISTENS && first == TCP_ESTABLISHED ? TCP_LISTEN : first);
	if (second != KINDS)
		locate(&e, 1, second);
	if (third != KINDS) {
		locate(&e, 2, third);
		if (wanted.family)
			describe_membership(&e);
	}
	bpf_seq_write(meta->seq, &e, sizeof(e));
	return 0;
}

SEC("iter/udp")
int udp_sockets(struct bpf_iter__udp *ctx)
{
	return visit(ctx->meta, (struct sock_common *)ctx->udp_sk, UDP_PORT, UDP_ADDRESS, UDP_FOUR);
}

SEC("iter/tcp")
int tcp_sockets(struct bpf_iter__tcp *ctx)
{
	return visit(ctx->meta, ctx->sk_common, TCP_ESTABLISHED, KINDS, KINDS);
}
