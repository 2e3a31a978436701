/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* What plugin.c has to know of an instruction, told from its bytes (Intel SDM, volume 2; 64-bit mode). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

/* the markers of cython_ext/core/marker.pxd: nopl DISPLACEMENT(%rax) */
#define MARKER 0x48575200u
enum { MARK_SENDS = 1, MARK_RECEIVES, MARK_ENDS, MARK_FILLS, MARK_FILLED, MARK_VERIFIES, MARK_VERIFIED, MARK_SOURCE };

/* Which marker this is; 0: none. */
static unsigned marker_of(const uint8_t *bytes, size_t size)
{
	uint32_t displacement;

	if (size != 7 || bytes[0] != 0x0f || bytes[1] != 0x1f || bytes[2] != 0x80)
		return 0;
	memcpy(&displacement, bytes + 3, sizeof(displacement));
	return (displacement & 0xffffff00u) == MARKER ? displacement & 0xff : 0;
}

/* RDTSC or RDTSCP of a program: the kernel's own are no reading of the loop's clock. */
static bool reads_counter(uint64_t address, const uint8_t *bytes, size_t size)
{
	if (address >> 47)
		return false;
	return (size == 2 && bytes[0] == 0x0f && bytes[1] == 0x31) ||
	       (size == 3 && bytes[0] == 0x0f && bytes[1] == 0x01 && bytes[2] == 0xf9);
}

static bool in_kernel(const struct instruction *one)
{
	return one->address >> 47;
}

/* Behind the prefixes (2.1.1 and 2.2.1), which say nothing of what an instruction is for us. */
static size_t opcode_at(const uint8_t *bytes, size_t size)
{
	size_t at = 0;

	while (at < size && (bytes[at] == 0x66 || bytes[at] == 0xf2 || bytes[at] == 0xf3 || bytes[at] == 0x2e ||
			     bytes[at] == 0x3e || (bytes[at] & 0xf0) == 0x40))
		at++;
	return at;
}

static bool is_call(const uint8_t *bytes, size_t size)
{
	size_t at = opcode_at(bytes, size);

	return at < size && (bytes[at] == 0xe8 || (bytes[at] == 0xff && at + 1 < size && (bytes[at + 1] >> 3 & 7) == 2));
}

static bool is_return(const uint8_t *bytes, size_t size)
{
	size_t at = opcode_at(bytes, size);

	return at < size && (bytes[at] == 0xc3 || bytes[at] == 0xc2);
}

/* MOV to CR3: another address space, or a flush of the TLB. */
static bool loads_cr3(const uint8_t *bytes, size_t size)
{
	size_t at = opcode_at(bytes, size);

	return at + 2 < size && bytes[at] == 0x0f && bytes[at + 1] == 0x22 && (bytes[at + 2] >> 3 & 7) == 3;
}

/* IN, OUT, INS, OUTS. */
static bool uses_port(const uint8_t *bytes, size_t size)
{
	size_t at = opcode_at(bytes, size);

	if (at == size)
		return false;
	return (bytes[at] >= 0xe4 && bytes[at] <= 0xe7) || (bytes[at] >= 0xec && bytes[at] <= 0xef) ||
	       (bytes[at] >= 0x6c && bytes[at] <= 0x6f);
}

/* IRETQ. */
static bool ends_interrupt(const uint8_t *bytes, size_t size)
{
	return size == 2 && bytes[0] == 0x48 && bytes[1] == 0xcf;
}

/*
 * CLD, and behind it PUSH of -1 or CALL: so begins every entry of Linux for an interrupt or an exception, and nothing
 * else (arch/x86/entry/entry_64.S, idtentry). The CLAC before it ends a block of the emulator's.
 */
static bool takes_interrupt(const struct instruction *one, const struct instruction *next)
{
	return in_kernel(one) && one->size == 1 && one->bytes[0] == 0xfc &&
	       ((next->size == 2 && !memcmp(next->bytes, "\x6a\xff", 2)) || (next->size == 5 && next->bytes[0] == 0xe8));
}

/* PUSH of a byte and JMP: the stub of an interrupt's vector (irq_entries_start, arch/x86/include/asm/idtentry.h). */
static bool pushes_vector(const struct instruction *one, const struct instruction *next)
{
	return in_kernel(one) && one->size == 2 && one->bytes[0] == 0x6a && (next->bytes[0] == 0xe9 || next->bytes[0] == 0xeb);
}
