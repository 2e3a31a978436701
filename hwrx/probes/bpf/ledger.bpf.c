/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/*
 * The ledger's programs: one object that holds both sets (tracepoints and hooks; functions). User space decides at run
 * time which of them to load, stage by stage; see hwrx/probes/attaching.py. The files, as a message travels:
 * message.h (whose is it), record.h (what becomes of a stamp), packets.h (skb stages), calls.h, sending.h and
 * receiving.h (sockets), verbs.h, rings.h.
 */
#include "rings.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
