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
 * The interface's prototypes are from its documentation (docs/devel/tcg-plugins.rst), as Debian packages no header.
 * PLUGIN_API is the version that is built for: 1 (QEMU 4.2 to 8.2), 2 (9.0) or 3 (9.1 and later).
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

#define EXPORT __attribute__((visibility("default")))

/* --- the interface -------------------------------------------------------------------------------------------------- */

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct {
	const char *target_name;
	struct {
		int min, cur;
	} version;
	bool system_emulation;
	union {
		struct {
			int smp_vcpus, max_vcpus;
		} system;
	};
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
enum { NO_REGISTERS = 0, MEMORY_BOTH = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
				      void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *), int, int, void *);
void qemu_plugin_reset(qemu_plugin_id_t, void (*)(qemu_plugin_id_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t, uint64_t);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *);
#if PLUGIN_API < 3
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#else
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API < 2 ? 1 : 2;

/* --- the file: hwrx/anatomy/layout.py --------------------------------------------------------------------------------- */

#define PAGE 4096
#define LONGEST 15 /* bytes of an instruction, Intel SDM 2.3.11 */

struct header {
	char magic[8];            /* "HWRXANA2" */
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
enum { RAN = 1, SENDS, RECEIVES, READS_CLOCK, CALLS, RETURNS, FILLS, FILLED, VERIFIES, VERIFIED, LOADS, STORES, WHERE, AT };
#define WORD(kind, value) ((uint64_t)(kind) << 56 | ((uint64_t)(value) & 0xffffffffffffffULL))
/* of WHERE: the physical address, which has 46 bits at most here; a device's; none; and above that the size's logarithm */
#define PHYSICAL 0x3fffffffffffULL
#define OF_DEVICE (1ULL << 46)
#define NOWHERE (1ULL << 47)
#define SIZE_SHIFT 48

/* the markers of cython_ext/core/marker.pxd: nopl DISPLACEMENT(%rax) */
#define MARKER 0x48575200u
enum { MARK_SENDS = 1, MARK_RECEIVES, MARK_ENDS, MARK_FILLS, MARK_FILLED, MARK_VERIFIES, MARK_VERIFIED, MARK_SOURCE };

static struct header *header;
static struct block *blocks;
static struct instruction *instructions;
static uint64_t *words;

/* a block as it was translated, and an instruction in it */
struct code {
	uint64_t number;          /* in the file, and one more; 0: it has none */
	uint64_t count;
	struct instruction instructions[];
};

struct place {
	struct code *code;
	uint32_t index;
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

static void verifies(unsigned cpu, void *at)
{
	(void)cpu;
	if (recording)
		put(word_at(VERIFIES, at));
}

static void verified(unsigned cpu, void *at)
{
	(void)cpu;
	if (recording)
		put(word_at(VERIFIED, at));
}

static void receives(unsigned cpu, void *at)
{
	(void)cpu;
	if (recording)
		put(word_at(RECEIVES, at));
}

/* The loop has ended: what comes now is no message's, until one is sent again. */
static void ends(unsigned cpu, void *unused)
{
	(void)cpu, (void)unused;
	recording = false;
}

static void reads_clock(unsigned cpu, void *at)
{
	(void)cpu;
	if (recording)
		put(word_at(READS_CLOCK, at));
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

static void accesses(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *at)
{
	struct qemu_plugin_hwaddr *place;
	uint64_t where = NOWHERE;

	(void)cpu;
	if (!recording)
		return;
	place = qemu_plugin_get_hwaddr(info, address);
	if (place)
		where = (qemu_plugin_hwaddr_phys_addr(place) & PHYSICAL) | (qemu_plugin_hwaddr_is_io(place) ? OF_DEVICE : 0);
	put(WORD(qemu_plugin_mem_is_store(info) ? STORES : LOADS, address));
	put(WORD(WHERE, where | (uint64_t)qemu_plugin_mem_size_shift(info) << SIZE_SHIFT));
	put(word_at(AT, at));
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

/* A call leaves its return address in memory, a return reads it there: whoever follows both knows the stack. */
static void follow_stack(struct qemu_plugin_insn *last, const uint8_t *bytes, size_t size)
{
	size_t at = 0;

	while (at < size && (bytes[at] == 0x66 || bytes[at] == 0xf2 || bytes[at] == 0xf3 || bytes[at] == 0x2e ||
			     bytes[at] == 0x3e || (bytes[at] & 0xf0) == 0x40))
		at++; /* prefixes, Intel SDM 2.1.1 and 2.2.1 */
	if (at == size)
		return;
	if (bytes[at] == 0xe8 || (bytes[at] == 0xff && at + 1 < size && (bytes[at + 1] >> 3 & 7) == 2))
		qemu_plugin_register_vcpu_mem_cb(last, calls, NO_REGISTERS, MEMORY_BOTH, NULL);
	else if (bytes[at] == 0xc3 || bytes[at] == 0xc2)
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
	known_codes++;
	known[slot] = made;
	return made;
}

static void *place(struct code *code, uint32_t index)
{
	struct place *made = malloc(sizeof(*made));

	if (!made)
		abort();
	made->code = code;
	made->index = index;
	return made;
}

static void (*const at_marker[])(unsigned, void *) = {
	[MARK_SENDS] = sends,	    [MARK_RECEIVES] = receives, [MARK_ENDS] = ends,	    [MARK_FILLS] = fills,
	[MARK_FILLED] = filled,	    [MARK_VERIFIES] = verifies, [MARK_VERIFIED] = verified, [MARK_SOURCE] = fills_source,
};

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
		unsigned marker = marker_of(kept->bytes, kept->size);

		if (marker && marker <= MARK_SOURCE)
			qemu_plugin_register_vcpu_insn_exec_cb(one, at_marker[marker], NO_REGISTERS, place(code, index));
		else if (reads_counter(kept->address, kept->bytes, kept->size))
			qemu_plugin_register_vcpu_insn_exec_cb(one, reads_clock, NO_REGISTERS, place(code, index));
		if (with_memory)
			qemu_plugin_register_vcpu_mem_cb(one, accesses, NO_REGISTERS, MEMORY_BOTH, place(code, index));
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
	struct header made = {.magic = "HWRXANA2", .blocks_room = blocks_room, .words_room = words_room};
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
