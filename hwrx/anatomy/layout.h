/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The file that plugin.c writes. hwrx/anatomy/layout.py knows the same layout, and says what each word means. */
#pragma once

#include <stdint.h>

#define PAGE 4096
#define LONGEST 15 /* bytes of an instruction, Intel SDM 2.3.11 */

struct header {
	char magic[8];            /* "HWRXANA3" */
	uint64_t blocks_at, blocks_room, blocks;
	uint64_t instructions_at, instructions_room, instructions;
	uint64_t words_at, words_room, words;
	uint64_t lost;            /* words for which there was no room */
	uint64_t unknown;         /* blocks for which there was none: 0, or nothing can be told */
	uint64_t awake;           /* whether the first marker was met */
	uint64_t messages;        /* first markers that were met since */
	uint64_t wanted;          /* 1: accesses to memory too. The reader sets it; it counts from the next message on */
};

struct block {
	uint64_t address;
	uint32_t first, count;    /* of its instructions */
};

struct instruction {
	uint64_t address;
	uint8_t size, bytes[LONGEST];
};

/* a word: what in its upper byte, and a value. Behind LOADS and STORES come WHERE and AT */
enum {
	RAN = 1, SENDS, RECEIVES, READS_CLOCK, CALLS, RETURNS, FILLS, FILLED, VERIFIES, VERIFIED, LOADS, STORES, WHERE, AT,
	VECTOR, INTERRUPTS, INTERRUPT_ENDS, LOADS_CR3, USES_PORT
};
#define WORD(kind, value) ((uint64_t)(kind) << 56 | ((uint64_t)(value) & 0xffffffffffffffULL))
/* of WHERE: the physical address, which has 46 bits at most here; a device's; none; and above that the size's logarithm */
#define PHYSICAL 0x3fffffffffffULL
#define OF_DEVICE (1ULL << 46)
#define NOWHERE (1ULL << 47)
#define SIZE_SHIFT 48
