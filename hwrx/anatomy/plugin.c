/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * A plugin of QEMU's that writes down which instructions an emulated machine executes between two readings of its clock.
 *
 * It sleeps until the measuring loop's first marker: until then every translated block is looked through once, and
 * nothing is called when it runs. At the marker all code is translated anew, with a call at the beginning of each block.
 * From then on a word is written for each block that runs while a message is under way, and one for each reading of the
 * time stamp counter by a program, with the instruction's place in its block. That the count of instructions between two
 * readings is what the guest's clock says has passed is for the reader to check (hwrx.anatomy.trace).
 *
 * All goes into one file that is mapped: what was written is there also if QEMU is killed. hwrx/anatomy/layout.py knows
 * the same layout. Nothing of the guest changes: with -icount its clock counts instructions, and a plugin adds none.
 *
 * Interrupts, loads of CR3 and accesses to ports are told from the instructions' bytes (decode.h), devices' memory from
 * the address: no version of the interface announces all of them.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "decode.h"
#include "interface.h"
#include "layout.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = PLUGIN_API < 2 ? 1 : 2;

static struct header *header;
static struct block *blocks;
static struct instruction *instructions;
static uint64_t *words;

/* an instruction of a block, and the kind of the word that is written when it runs */
struct place {
	struct code *code;
	uint32_t index;
	unsigned kind;
};

/* a block as it was translated */
struct code {
	uint64_t number;          /* in the file, and one more; 0: it has none */
	uint64_t count;
	struct place *places;     /* of its instructions */
	struct instruction instructions[];
};

#define KNOWN (1 << 23)
static struct code **known;
static uint64_t known_codes;
static qemu_plugin_id_t self;
static bool recording;
static bool source;               /* a message is being written that nobody sends */
static bool with_memory;          /* how code is translated now */

static inline void put(uint64_t word)
{
	if (header->words < header->words_room)
		words[header->words++] = word;
	else
		header->lost++;
}

/* --- while the guest runs -------------------------------------------------------------------------------------------- */

/* The number of a block in the file. It is written there when it first runs in a message: most code never does. */
static uint64_t number_of(struct code *code)
{
	struct block *block = &blocks[header->blocks];

	if (code->number)
		return code->number - 1;
	if (header->blocks == header->blocks_room || header->instructions + code->count > header->instructions_room) {
		header->unknown++;
		return 0;
	}
	block->address = code->instructions[0].address;
	block->first = header->instructions;
	block->count = code->count;
	memcpy(&instructions[block->first], code->instructions, code->count * sizeof(code->instructions[0]));
	header->instructions += code->count;
	code->number = ++header->blocks;
	return code->number - 1;
}

static uint64_t word_at(unsigned kind, const struct place *at)
{
	return WORD(kind, (uint64_t)at->index << 32 | number_of(at->code));
}

static void block_runs(unsigned cpu, void *code)
{
	(void)cpu;
	if (recording)
		put(WORD(RAN, number_of(code)));
}

static void wake(qemu_plugin_id_t id);

/* Between messages: if the reader wants something else of the next ones, all code is translated anew. */
static void obey(void)
{
	if (recording || with_memory == (header->wanted == 1))
		return;
	with_memory = header->wanted == 1;
	qemu_plugin_reset(self, wake);
}

/* What follows is recorded, beginning with the block that we are in. */
static void begin(const struct place *at)
{
	obey();
	if (!recording)
		put(WORD(RAN, number_of(at->code)));
	recording = true;
}

/* A message is about to be sent. */
static void sends(unsigned cpu, void *at)
{
	(void)cpu;
	header->messages++;
	begin(at);
	put(word_at(SENDS, at));
}

/* One is about to be filled that will be sent and verified. */
static void fills(unsigned cpu, void *at)
{
	(void)cpu;
	begin(at);
	put(word_at(FILLS, at));
}

/* The same of one that the other end will fetch: of that no more is recorded than where it is. */
static void fills_source(unsigned cpu, void *at)
{
	(void)cpu;
	if (!recording) {
		begin(at);
		source = true;
	}
	put(word_at(FILLS, at));
}

static void filled(unsigned cpu, void *at)
{
	(void)cpu;
	if (!recording)
		return;
	put(word_at(FILLED, at));
	if (source)
		recording = source = false;
}

/* What is no more than a word of its place. */
static void happens(unsigned cpu, void *at)
{
	(void)cpu;
	if (recording)
		put(word_at(((const struct place *)at)->kind, at));
}

/* The loop has ended: what comes now is no message's, until one is sent again. */
static void ends(unsigned cpu, void *unused)
{
	(void)cpu, (void)unused;
	recording = false;
}

static void calls(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t slot, void *unused)
{
	(void)cpu, (void)unused;
	if (recording && qemu_plugin_mem_is_store(info))
		put(WORD(CALLS, slot));
}

static void returns(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t slot, void *unused)
{
	(void)cpu, (void)unused;
	if (recording && !qemu_plugin_mem_is_store(info))
		put(WORD(RETURNS, slot));
}

static void record_access(qemu_plugin_meminfo_t info, uint64_t address, const struct place *at, bool any)
{
	const struct qemu_plugin_hwaddr *place = qemu_plugin_get_hwaddr(info, address);
	uint64_t where = NOWHERE;

	if (place)
		where = (qemu_plugin_hwaddr_phys_addr(place) & PHYSICAL) | (qemu_plugin_hwaddr_is_io(place) ? OF_DEVICE : 0);
	if (!any && !(where & OF_DEVICE))
		return;
	put(WORD(qemu_plugin_mem_is_store(info) ? STORES : LOADS, address));
	put(WORD(WHERE, where | (uint64_t)qemu_plugin_mem_size_shift(info) << SIZE_SHIFT));
	put(word_at(AT, at));
}

static void accesses(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *at)
{
	(void)cpu;
	if (recording)
		record_access(info, address, at, true);
}

static void accesses_device(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *at)
{
	(void)cpu;
	if (recording)
		record_access(info, address, at, false);
}

static void pushes(unsigned cpu, void *vector)
{
	(void)cpu;
	if (recording)
		put(WORD(VECTOR, (uintptr_t)vector));
}

/* --- while code is translated ---------------------------------------------------------------------------------------- */

static size_t copy_bytes(const struct qemu_plugin_insn *from, uint8_t bytes[LONGEST])
{
	size_t size = qemu_plugin_insn_size(from);

	if (size > LONGEST)
		size = LONGEST;
#if PLUGIN_API < 3
	memcpy(bytes, qemu_plugin_insn_data(from), size);
#else
	size = qemu_plugin_insn_data(from, bytes, size);
#endif
	return size;
}

/* A call leaves its return address in memory, a return reads it there: whoever follows both knows the stack. */
static void follow_stack(struct qemu_plugin_insn *last, const uint8_t *bytes, size_t size)
{
	if (is_call(bytes, size))
		qemu_plugin_register_vcpu_mem_cb(last, calls, NO_REGISTERS, MEMORY_BOTH, NULL);
	else if (is_return(bytes, size))
		qemu_plugin_register_vcpu_mem_cb(last, returns, NO_REGISTERS, MEMORY_BOTH, NULL);
}

/*
 * Return what is known of a block, which may have been translated before: QEMU does so again and again, as often as it
 * needs a piece that ends when a timer is due. NULL: there is no memory.
 */
static struct code *find_code(const struct qemu_plugin_tb *tb, size_t count)
{
	uint64_t slot, mask = KNOWN - 1;
	struct code *made;
	size_t index;

	made = calloc(1, sizeof(*made) + count * sizeof(made->instructions[0]));
	if (!made)
		return NULL;
	made->count = count;
	for (index = 0; index < count; index++) {
		struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(tb, index);

		made->instructions[index].address = qemu_plugin_insn_vaddr(one);
		made->instructions[index].size = copy_bytes(one, made->instructions[index].bytes);
	}
	/* by its first address: 0x9e37… is 2^64 divided by the golden ratio (Knuth, 6.4) */
	slot = made->instructions[0].address * 0x9e3779b97f4a7c15ULL >> 32 & mask;
	for (; known[slot]; slot = (slot + 1) & mask) {
		struct code *there = known[slot];

		if (there->count == count &&
		    !memcmp(there->instructions, made->instructions, count * sizeof(made->instructions[0]))) {
			free(made);
			return there;
		}
	}
	if (known_codes == KNOWN / 4 * 3) {
		free(made);
		return NULL;
	}
	made->places = calloc(count, sizeof(made->places[0]));
	if (!made->places) {
		free(made);
		return NULL;
	}
	for (index = 0; index < count; index++)
		made->places[index] = (struct place){.code = made, .index = index};
	known_codes++;
	known[slot] = made;
	return made;
}

static const struct {
	void (*call)(unsigned, void *);
	unsigned kind;
} at_marker[] = {
	[MARK_SENDS] = {sends, SENDS},	      [MARK_RECEIVES] = {happens, RECEIVES}, [MARK_ENDS] = {ends, 0},
	[MARK_FILLS] = {fills, FILLS},	      [MARK_FILLED] = {filled, FILLED},	     [MARK_VERIFIES] = {happens, VERIFIES},
	[MARK_VERIFIED] = {happens, VERIFIED}, [MARK_SOURCE] = {fills_source, FILLS},
};

/* The word that an instruction leaves, though it is no marker; 0: none. */
static unsigned word_of(const struct code *code, size_t index)
{
	const struct instruction *one = &code->instructions[index];

	if (reads_counter(one->address, one->bytes, one->size))
		return READS_CLOCK;
	if (index + 1 < code->count && takes_interrupt(one, one + 1))
		return INTERRUPTS;
	if (ends_interrupt(one->bytes, one->size))
		return INTERRUPT_ENDS;
	if (loads_cr3(one->bytes, one->size))
		return LOADS_CR3;
	return uses_port(one->bytes, one->size) ? USES_PORT : 0;
}

/* What is to be called when an instruction runs, if anything is. */
static void watch(struct qemu_plugin_insn *one, struct code *code, size_t index)
{
	const struct instruction *kept = &code->instructions[index];
	unsigned marker = marker_of(kept->bytes, kept->size);
	struct place *at = &code->places[index];

	if (marker && marker <= MARK_SOURCE) {
		at->kind = at_marker[marker].kind;
		qemu_plugin_register_vcpu_insn_exec_cb(one, at_marker[marker].call, NO_REGISTERS, at);
	} else if ((at->kind = word_of(code, index))) {
		qemu_plugin_register_vcpu_insn_exec_cb(one, happens, NO_REGISTERS, at);
	} else if (index + 1 < code->count && pushes_vector(kept, kept + 1)) {
		qemu_plugin_register_vcpu_insn_exec_cb(one, pushes, NO_REGISTERS, (void *)(uintptr_t)kept->bytes[1]);
	}
}

static void instrument(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb), index;
	struct code *code = find_code(tb, count);

	(void)id;
	if (!code) {
		header->unknown++;
		return;
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, block_runs, NO_REGISTERS, code);
	for (index = 0; index < count; index++) {
		struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(tb, index);
		const struct instruction *kept = &code->instructions[index];

		watch(one, code, index);
		qemu_plugin_register_vcpu_mem_cb(one, with_memory ? accesses : accesses_device, NO_REGISTERS, MEMORY_BOTH,
						 &code->places[index]);
		if (index + 1 == count)
			follow_stack(one, kept->bytes, kept->size);
	}
}

static void wake(qemu_plugin_id_t id)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, instrument);
}

static void first_marker(unsigned cpu, void *unused)
{
	(void)cpu, (void)unused;
	if (!header->awake) {
		header->awake = 1;
		qemu_plugin_reset(self, wake);
	}
}

/* Before the first marker: look for it, and nothing else. */
static void look_for_marker(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb), index;

	(void)id;
	for (index = 0; index < count; index++) {
		struct qemu_plugin_insn *one = qemu_plugin_tb_get_insn(tb, index);
		uint8_t bytes[LONGEST];

		if (qemu_plugin_insn_size(one) == 7 && marker_of(bytes, copy_bytes(one, bytes)) == MARK_SENDS)
			qemu_plugin_register_vcpu_insn_exec_cb(one, first_marker, NO_REGISTERS, NULL);
	}
}

/* --- the beginning ---------------------------------------------------------------------------------------------------- */

static const char *argument(int count, char **arguments, const char *name)
{
	size_t length = strlen(name);

	for (int each = 0; each < count; each++)
		if (!strncmp(arguments[each], name, length) && arguments[each][length] == '=')
			return arguments[each] + length + 1;
	return NULL;
}

static uint64_t room_for(uint64_t *end, uint64_t count, size_t size)
{
	uint64_t at = *end;

	*end = (at + count * size + PAGE - 1) / PAGE * PAGE;
	return at;
}

/* Make the file as large as it may become; it takes room on the disk as far as it is written. */
static bool map_file(const char *path, uint64_t words_room, uint64_t blocks_room)
{
	struct header made = {.magic = "HWRXANA3", .blocks_room = blocks_room, .words_room = words_room};
	uint64_t end = PAGE;
	char *memory;
	int file;

	made.instructions_room = blocks_room * 8;
	made.blocks_at = room_for(&end, blocks_room, sizeof(struct block));
	made.instructions_at = room_for(&end, made.instructions_room, sizeof(struct instruction));
	made.words_at = room_for(&end, words_room, sizeof(uint64_t));
	file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0 || ftruncate(file, end))
		return false;
	memory = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (memory == MAP_FAILED)
		return false;
	memcpy(memory, &made, sizeof(made));
	header = (struct header *)memory;
	blocks = (struct block *)(memory + made.blocks_at);
	instructions = (struct instruction *)(memory + made.instructions_at);
	words = (uint64_t *)(memory + made.words_at);
	known = calloc(KNOWN, sizeof(*known));
	return known;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments)
{
	const char *path = argument(count, arguments, "into"), *room = argument(count, arguments, "words"),
		   *distinct = argument(count, arguments, "blocks");

	if (!path || !room || !distinct || !info->system_emulation || info->system.smp_vcpus != 1) {
		fprintf(stderr, "hwrx anatomy: needs into=, words=, blocks=, and a machine of one CPU\n");
		return 1;
	}
	if (!map_file(path, strtoull(room, NULL, 10), strtoull(distinct, NULL, 10))) {
		perror("hwrx anatomy: its file");
		return 1;
	}
	self = id;
	qemu_plugin_register_vcpu_tb_trans_cb(id, look_for_marker);
	return 0;
}
