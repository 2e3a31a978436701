# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: needs libbpf and its headers
"""The ledger's BPF programs: loaded with libbpf, attached by links that live as long as this process, drained in bulk.

Nothing is pinned: a link is a file descriptor, so the kernel detaches the programs when the process ends, however it
ends. The structures are laid down in hwrx/probes/bpf (record.h, message.h); what an object says of them in its BTF is
compared when it is loaded.
"""

import errno
import os

import numpy as np

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from cython_ext.headers.bpf_libbpf cimport *

from cython_ext.bpf.kernel_btf import aimed
from cython_ext.bpf.object_btf import structures

cdef extern from "<stdio.h>" nogil:
    int vsnprintf(char *out, size_t size, const char *form, va_list arguments)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_NEWNET
    int setns(int fd, int kind)

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_bpf

cdef enum:
    PAGE = 4096  # of the mapping, which the kernel rounds up to its own
    BUCKETS = 256
    CONTEXTS = 4  # enum context
    SAID_ROOM = 65536
    # linux/bpf.h since 6.4; older headers lack the three names, the kernel's numbers are fixed
    BPF_LINK_CREATE = 28
    BPF_PROG_TYPE_NETFILTER = 32
    BPF_NETFILTER = 45

cdef struct Event:
    uint64_t ns, sequence, object  # ns: CLOCK_MONOTONIC; object: the skb, or the buffer copied to or from
    uint32_t flow, trial, bytes, position, tid  # as record.h lays them out: 48 bytes, no gap
    uint16_t cpu
    uint8_t stage, context

cdef struct Totals:
    uint64_t count, bytes, timed, sum_ns, max_ns  # of one stage on one CPU
    uint64_t by[CONTEXTS]  # of `bytes`: who handled them
    uint32_t buckets[BUCKETS]  # of the histogram of times

cdef struct Settings:
    uint32_t sample_every, size, trial, any_trial, time_mask, unused  # the programs read them, we alone write

cdef struct Machine:
    uint64_t page_offset_base, vmemmap_base  # addresses, or values if `constant`
    uint32_t constant, holds, exits, contexts  # flags; see struct machine

# union bpf_attr as BPF_LINK_CREATE with a netfilter program reads it
cdef struct NetfilterLink:
    uint32_t prog_fd, target_fd, attach_type, flags, pf, hooknum
    int priority
    uint32_t netfilter_flags

EVENT = np.dtype([
    ("ns", "<u8"), ("sequence", "<u8"), ("object", "<u8"), ("flow", "<u4"), ("trial", "<u4"), ("bytes", "<u4"),
    ("position", "<u4"), ("tid", "<u4"), ("cpu", "<u2"), ("stage", "u1"), ("context", "u1"),
])
TOTALS = np.dtype([
    ("count", "<u8"), ("bytes", "<u8"), ("timed", "<u8"), ("sum_ns", "<u8"), ("max_ns", "<u8"),
    ("by", "<u8", (CONTEXTS,)), ("buckets", "<u4", (BUCKETS,)),
])
VERSION = (libbpf_major_version(), libbpf_minor_version())

# What libbpf said last: it tells reasons only through its print function.
cdef char[SAID_ROOM] said
cdef size_t said_length = 0


cdef int listen(libbpf_print_level level, const char *form, va_list arguments) noexcept nogil:
    global said_length
    cdef int n
    # Called by libbpf in the middle of its work, by `drain` without the GIL: nothing of Python, a buffer of fixed size.
    if level > LIBBPF_WARN or said_length + 1 >= SAID_ROOM:
        return 0
    n = vsnprintf(said + said_length, SAID_ROOM - said_length, form, arguments)
    if n > 0:
        said_length = min(said_length + <size_t> n, <size_t> (SAID_ROOM - 1))
    return n


libbpf_set_print(listen)


cdef str heard():
    """What libbpf has said since the last call."""
    global said_length
    text = said[:said_length].decode(errors="replace")
    said_length = 0
    return text


def words():
    """What libbpf has said since it was last asked: it gives its reasons through one print function a process."""
    return heard()


cdef struct Destination:
    char *at
    size_t left


cdef int take(void *context, void *data, size_t size) noexcept nogil:
    cdef Destination *to = <Destination *> context
    memcpy(to.at, data, sizeof(Event))  # before it returns: libbpf then frees the record for the kernel to write to
    to.at += sizeof(Event)
    to.left -= 1  # libbpf stores the consumer's position behind this record, whatever we return
    # a negative value ends the consuming, with this event taken
    return 0 if to.left else -1


class LoadError(OSError):
    """An object did not load. `program`: the one that the kernel refused, or "". `said`: libbpf's word."""

    def __init__(self, code, program, text):
        super().__init__(code, os.strerror(code))
        self.program = program
        self.said = text


cdef class Tracer:
    """One BPF object, opened, then loaded with a choice of its programs, then attached program by program.

    A context manager; `close()` detaches everything and is idempotent. Not for use by several threads at once, except
    that `drain` may run in one of its own. Links, ring and map belong to this object and end with it or with the
    process.

    :param path: the object file
    :raises LoadError: if libbpf cannot read it
    """

    cdef bpf_object *object
    cdef ring_buffer *ring
    cdef Destination destination
    cdef Settings *settings
    cdef dict links       # program name -> list of addresses of bpf_link
    cdef list descriptors  # of links that libbpf knows nothing about
    cdef readonly int cpus
    cdef int totals_fd, cpus_fd
    cdef object path, cpu     # of struct cpu: how NumPy reads it
    cdef object before        # what the CPUs had counted when the totals were cleared
    cdef readonly bint loaded

    def __cinit__(self):
        self.links = {}  # by number, as Python cannot hold a bpf_link
        self.descriptors = []

    def __init__(self, path):
        heard()
        self.path = path
        self.object = bpf_object__open_file(os.fsencode(path), NULL)
        if self.object is NULL:
            code = c_errno
            raise LoadError(code, "", heard())
        self.cpus = libbpf_num_possible_cpus()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        # only what needs no Python: close() is the way, this is for what an exception left behind
        if self.ring is not NULL:  # before the object: it maps one of its maps
            ring_buffer__free(self.ring)
        if self.object is not NULL:
            bpf_object__close(self.object)

    def close(self):
        """Detach and unload; harmless when called twice. Events that nobody has drained are lost."""
        cdef size_t address
        for kept in self.links.values():  # first, so no program runs while what it writes to goes
            for address in kept:
                bpf_link__destroy(<bpf_link *> address)  # closes its only descriptor, so the kernel detaches it
        self.links = {}
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []
        if self.settings is not NULL:
            munmap(self.settings, PAGE)  # before the object that owns the map behind it
            self.settings = NULL
        if self.ring is not NULL:
            ring_buffer__free(self.ring)  # and the ring before the object, likewise
            self.ring = NULL
        if self.object is not NULL:
            bpf_object__close(self.object)
            self.object = NULL
        self.loaded = False

    def programs(self):
        """The programs of the object file, loaded or not: a dict of name to section."""
        cdef bpf_program *program = NULL
        result = {}
        while True:
            program = bpf_object__next_program(self.object, program)
            if program is NULL:
                return result
            result[bpf_program__name(program).decode()] = bpf_program__section_name(program).decode()

    def load(self, chosen, targets, *, ring_bytes=1 << 24, page_offset_base=0, vmemmap_base=0, constant=False,
             holds=False, exits=True, contexts=False):
        """Load the chosen programs. If one is refused, the Tracer is good for `close` only.

        :param chosen: names of programs
        :param targets: of each fentry, fexit and tp_btf program among them, what it is attached to: a value of
            kernel_btf.kernel_knows
        :param ring_bytes: a power of two, at least a page
        :param page_offset_base, vmemmap_base: addresses of kernel variables, or values if `constant`; see struct
            machine, which the other flags belong to as well
        :raises LoadError: naming the program that was refused, or what differs between object and extension
        """
        cdef bpf_program *program = NULL
        cdef size_t size = 0
        cdef void *value
        cdef Machine machine
        cdef bpf_map *table
        wanted = set(chosen)
        while True:
            program = bpf_object__next_program(self.object, program)
            if program is NULL:
                break
            name = bpf_program__name(program).decode()
            bpf_program__set_autoload(program, name in wanted)  # or libbpf loads all: one refused fails the load
            if bpf_program__section_name(program) == b"netfilter":
                bpf_program__set_type(program, <bpf_prog_type> BPF_PROG_TYPE_NETFILTER)
                bpf_program__set_expected_attach_type(program, <bpf_attach_type> BPF_NETFILTER)
        bpf_map__set_max_entries(self.table(b"events"), ring_bytes)  # before the load, which creates the map
        machine.page_offset_base = page_offset_base
        machine.vmemmap_base = vmemmap_base
        machine.constant = constant
        machine.holds = holds
        machine.exits = exits
        machine.contexts = contexts
        value = bpf_map__initial_value(self.table(b".rodata"), &size)
        if value is NULL or size != sizeof(Machine):
            raise LoadError(errno.EINVAL, "", f"struct machine has {size} bytes in the object, {sizeof(Machine)} here")
        # libbpf freezes .rodata at the load: the verifier then drops dead branches
        memcpy(value, &machine, sizeof(Machine))
        heard()
        with aimed(targets):  # the handlers that say what each program attaches to, for this load
            status = bpf_object__load(self.object)
        if status < 0:
            text = heard()
            raise LoadError(-status, _refused(text), text)
        table = self.table(b"totals")
        self.totals_fd = bpf_map__fd(table)
        table = self.table(b"cpus")
        self.cpus_fd = bpf_map__fd(table)
        # BTF is the only source: a field that moved is found here, not in the figures
        forms = {name: np.dtype(form) for name, form in structures(self.path, ["cpu", "event", "totals"]).items()}
        for name, here in (("event", EVENT), ("totals", TOTALS)):
            if forms[name] != here:
                raise LoadError(errno.EINVAL, "", f"struct {name} differs between object and extension")
        self.cpu = forms["cpu"]
        if bpf_map__value_size(table) != self.cpu.itemsize or self.cpu.itemsize % 8:
            raise LoadError(errno.EINVAL, "", "struct cpu differs between the object's map and its BTF")
        self.before = np.zeros((bpf_map__max_entries(self.table(b"totals")), 2 + CONTEXTS), dtype=np.uint64)
        table = self.table(b".data")
        if bpf_map__value_size(table) != sizeof(Settings):
            raise LoadError(errno.EINVAL, "", "struct settings differs between object and extension")
        # libbpf maps it only for skeletons; mapped, a change is seen by the programs at once and costs no system call
        # shared: the same pages as the programs see
        value = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(table), 0)
        if value == MAP_FAILED:
            code = c_errno
            raise LoadError(code, "", "mapping the settings")
        self.settings = <Settings *> value
        # maps producer and data for reading, consumer for writing
        self.ring = ring_buffer__new(bpf_map__fd(self.table(b"events")), take, &self.destination, NULL)
        if self.ring is NULL:
            code = c_errno
            raise LoadError(code, "", heard())
        self.loaded = True  # last: until here only `close` is allowed

    cdef bpf_map *table(self, const char *name) except NULL:
        cdef bpf_map *found = bpf_object__find_map_by_name(self.object, name)
        if found is NULL:
            raise LoadError(errno.ENOENT, "", f"the object has no map {name.decode()}")
        return found

    cdef bpf_program *program(self, name) except NULL:
        cdef bpf_program *found = bpf_object__find_program_by_name(self.object, name.encode())
        if found is NULL or bpf_program__fd(found) < 0:
            raise OSError(errno.ENOENT, "this program is not loaded", name)
        return found

    def attach(self, name):
        """Attach a loaded tp_btf, fentry or fexit program.

        :param name: of the program; what it is attached to was said to `load`
        :raises OSError: with what libbpf or the kernel said
        """
        cdef bpf_link *link
        heard()
        # not bpf_program__attach, which knows only libbpf's own sections
        link = bpf_program__attach_trace(self.program(name))
        self._keep(name, link)

    def attach_cgroup(self, name, int cgroup_fd):
        """Attach a loaded cgroup_skb program.

        :param cgroup_fd: descriptor of a cgroup (v2), which stays the caller's
        :raises OSError: with what libbpf or the kernel said
        """
        cdef bpf_link *link
        heard()
        link = bpf_program__attach_cgroup(self.program(name), cgroup_fd)
        self._keep(name, link)

    cdef int _keep(self, name, bpf_link *link) except -1:
        if link is NULL:
            code = c_errno  # first of all, because each call behind it may change it
            text = heard().strip().splitlines()
            raise OSError(code, text.pop() if text else os.strerror(code), name)
        self.links.setdefault(name, []).append(<size_t> link)  # kept: a link that is freed detaches its program
        return 0

    def attach_netfilter(self, name, uint32_t family, uint32_t hook, int priority, int namespace=-1):
        """Attach a netfilter program to a hook of a network namespace.

        :param family, hook, priority: NFPROTO_*, NF_INET_*, and where among the hook's functions
        :param namespace: descriptor of the namespace; -1: the calling thread's
        :raises OSError: with the kernel's error, or that of setns(2)
        """
        cdef NetfilterLink link
        cdef long descriptor
        cdef int home, code
        memset(&link, 0, sizeof(link))
        link.prog_fd = bpf_program__fd(self.program(name))
        link.attach_type = BPF_NETFILTER
        link.pf = family
        link.hooknum = hook
        link.priority = priority
        # of this thread, not of the process: setns moves threads
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # a hook belongs to the namespace of the thread that makes the link
            if namespace >= 0 and setns(namespace, CLONE_NEWNET) < 0:
                raise OSError(c_errno, os.strerror(c_errno), "setns")
            descriptor = syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof(link))
            code = c_errno  # of the call above: the way back may change it
            if namespace >= 0 and setns(home, CLONE_NEWNET) < 0:
                raise OSError(c_errno, os.strerror(c_errno), "setns")
        finally:
            os.close(home)
        if descriptor < 0:
            raise OSError(code, os.strerror(code), name)
        self.descriptors.append(descriptor)  # closing it is what detaches the program

    @property
    def attached(self):
        """How many links are held: 0 before the first `attach` and after `close`."""
        return sum(map(len, self.links.values())) + len(self.descriptors)

    def settings_are(self, *, uint32_t sample_every=0, uint32_t size=0, trial=None, uint32_t time_every=1):
        """What the programs do from now on.

        :param sample_every: each n-th message sends events; 0: none
        :param size: bytes of a message of a byte stream; 0: not known
        :param trial: whose messages count; None: any trial's
        :param time_every: of how many messages one is timed, a power of two; all are counted
        :raises ValueError: before `load`
        """
        if self.settings is NULL:
            raise ValueError("not loaded")
        # Plain stores, seen one by one on other CPUs: they are made while no message of a trial is on its way.
        self.settings.time_mask = time_every - 1
        self.settings.sample_every = sample_every
        self.settings.size = size
        self.settings.trial = trial or 0
        self.settings.any_trial = trial is None

    def drain(self, uint8_t[::1] out not None):
        """Move events from the ring to a buffer; releases the GIL.

        :param out: bytes, a whole number of EVENTs; the caller's
        :return: how many came; fewer than `out` holds if the ring held no more
        """
        cdef size_t room = <size_t> out.shape[0] // sizeof(Event)
        if self.ring is NULL or room == 0:
            return 0
        self.destination.at = <char *> &out[0]  # this thread's only: one drain at a time
        self.destination.left = room
        with nogil:
            # Ends at the first record that is reserved and not yet committed (BPF_RINGBUF_BUSY_BIT), so order is that
            # of reservation. It loads each length with acquire. The programs commit with BPF_RB_NO_WAKEUP: who drains
            # comes by itself.
            ring_buffer__consume(self.ring)
        return room - self.destination.left

    def totals(self):
        """The histograms and sums of each stage since loading, or since `clear`, CPUs added up.

        Copied while programs count: it may lack the last event of a CPU.

        :return: an array of TOTALS, shape (stages,), which belongs to the caller
        :raises OSError: if a map cannot be read
        """
        cdef uint32_t key
        cdef uint32_t stages = bpf_map__max_entries(self.table(b"totals"))
        # A lookup in a per-CPU array brings the value of every possible CPU, each rounded up to 8 bytes
        # (bpf_percpu_array_copy).
        per_cpu = np.zeros((stages, self.cpus), dtype=TOTALS)
        cdef uint8_t[:, :, ::1] raw = per_cpu.view(np.uint8).reshape(stages, self.cpus, sizeof(Totals))
        for key in range(stages):  # copied while programs count: a figure may lack the last event
            if bpf_map_lookup_elem(self.totals_fd, &key, &raw[key, 0, 0]) < 0:
                raise OSError(c_errno, os.strerror(c_errno))
        result = np.zeros(stages, dtype=TOTALS)
        # struct cpu holds the current message and cannot be cleared: what it had counted is subtracted
        counted = self._counted() - self.before
        for field in TOTALS.names:
            if field == "max_ns":
                result[field] = per_cpu[field].max(axis=1)
            else:
                result[field] = per_cpu[field].sum(axis=1)
        result["count"] += counted[:, 0]
        result["bytes"] += counted[:, 1]
        result["by"] += counted[:, 2:]
        return result

    def _cpus(self):
        """Each CPU's struct cpu."""
        cdef uint32_t key = 0
        state = np.zeros(self.cpus, dtype=self.cpu)
        cdef uint8_t[::1] raw = state.view(np.uint8)
        if bpf_map_lookup_elem(self.cpus_fd, &key, &raw[0]) < 0:
            raise OSError(c_errno, os.strerror(c_errno))
        return state

    def _counted(self):
        """What was counted and not timed since loading: stages x (times, bytes, bytes by each context)."""
        state = self._cpus()
        found, by = state["stages"], state["handled"]["by"].sum(axis=0)
        return np.column_stack([found["count"].sum(axis=0), found["bytes"].sum(axis=0), by])

    def clear(self):
        """Set all totals back to zero; to be called while no message is on its way."""
        cdef uint32_t key
        cdef uint32_t stages = bpf_map__max_entries(self.table(b"totals"))
        zeros = np.zeros(self.cpus * sizeof(Totals), dtype=np.uint8)
        cdef uint8_t[::1] raw = zeros
        for key in range(stages):
            bpf_map_update_elem(self.totals_fd, &key, &raw[0], 0)  # one call sets the stage on all CPUs
        self.before = self._counted()  # what is counted from here on is new

    def missed(self):
        """How often the kernel did not run a program because it was running on that CPU already.

        :return: program name -> how often, without those that were always run
        """
        cdef bpf_program *program = NULL
        cdef bpf_prog_info info
        cdef uint32_t size
        result = {}
        while True:
            program = bpf_object__next_program(self.object, program)
            if program is NULL:
                return result
            if bpf_program__fd(program) < 0:
                continue
            memset(&info, 0, sizeof(info))
            size = sizeof(info)
            # counted where the trampoline finds the program active on this CPU (kernel/bpf/trampoline.c)
            if bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size) == 0 and info.recursion_misses:
                result[bpf_program__name(program).decode()] = info.recursion_misses

    def lost(self):
        """Events for which the ring had no room, since loading: all CPUs together.

        Counted by the programs if bpf_ringbuf_reserve finds none. A timeline lacks what is counted here.
        """
        return int(self._cpus()["lost"].sum())  # counted by the programs: bpf_ringbuf_reserve found no room


def _refused(text):
    """The program that libbpf was at when it gave up: the last one named in what it said."""
    marker = "prog '"
    at = text.rfind(marker)
    return text[at + len(marker):].split("'", 1)[0] if at >= 0 else ""
