/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * What both ends of a socket path share: which message a system call is about, by what stands in the user's buffer.
 */
#pragma once
#include "packets.h"

/* Read a message's header in the memory of the current task. */
static __noinline int peek(u64 buffer, u32 length, struct message *m)
{
	struct head head;

	if (length < 8)
		return 0;
	if (bpf_probe_read_user(&head, sizeof(head), (void *)buffer) &&
	    bpf_probe_read_user(&head, 8, (void *)buffer)) /* a short message at the end of a page */
		return 0;
	return recognise(&head, length, m);
}

#define MMSGHDR 64     /* bytes of struct mmsghdr, */
#define MMSG_LENGTH 56 /* and where its msg_len stands (user ABI) */

/* struct user_msghdr: msg_iov at 16, and at the beginning of struct mmsghdr likewise (user ABI) */
static __always_inline u64 first_buffer(u64 header)
{
	u64 vector = 0, base = 0;

	bpf_probe_read_user(&vector, 8, (void *)(header + 16));
	bpf_probe_read_user(&base, 8, (void *)vector);
	return base;
}

#define MSG_TRUNC 0x20

static __always_inline u32 at_most(u32 value, u64 bound)
{
	return value < bound ? value : (u32)bound;
}

/* The bytes that a message header offers, of up to four pieces. */
static __always_inline u64 room_of(u64 header)
{
	u64 vector = 0, pieces = 0, length, sum = 0;
	int k;

	bpf_probe_read_user(&vector, 8, (void *)(header + 16));
	bpf_probe_read_user(&pieces, 8, (void *)(header + 24));
	for (k = 0; k < 4; k++) {
		length = 0;
		if ((u64)k < pieces)
			bpf_probe_read_user(&length, 8, (void *)(vector + 16 * k + 8));
		sum += length;
	}
	return sum;
}

/* The bytes that the receive call of the current thread offers; of a recvmmsg those of its first message. */
static __always_inline u64 room_of_call(void)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	switch (SYSCALL_NUMBER(regs)) {
	case __NR_recvmsg:
	case __NR_recvmmsg:
		return room_of(SYSCALL_ARG2(regs));
	case __NR_recvfrom:
	case __NR_read:
		return SYSCALL_ARG3(regs);
	}
	return ~0ull;
}

/* What the system call that the current thread is in was given: the buffer, or the first of several; 0: none. */
static __always_inline u64 buffer_of_call(void)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	switch (SYSCALL_NUMBER(regs)) {
	case __NR_recvfrom:
	case __NR_read:
	case __NR_sendto:
	case __NR_write:
		return SYSCALL_ARG2(regs);
	case __NR_recvmsg:
	case __NR_recvmmsg:
	case __NR_sendmsg:
	case __NR_sendmmsg:
		return first_buffer(SYSCALL_ARG2(regs));
	}
	return 0;
}
