/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * Where the kernel maps its pages: it looks its own symbols up in no time, where writing out /proc/kallsyms for user space
 * takes an emulated machine up to a second.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct bases {
	u64 page_offset_base, vmemmap_base; /* addresses of the variables of these names; 0: there is none */
};

SEC("syscall")
int find_bases(struct bases *bases)
{
	u64 found = 0;

	if (!bpf_kallsyms_lookup_name("page_offset_base", sizeof("page_offset_base"), 0, &found))
		bases->page_offset_base = found;
	if (!bpf_kallsyms_lookup_name("vmemmap_base", sizeof("vmemmap_base"), 0, &found))
		bases->vmemmap_base = found;
	return 0;
}
