# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: needs libbpf and its headers
"""What the running kernel says of itself in BTF: which functions and tracepoints it has, and their numbers.

libbpf looks the target of each program up by itself, in one pass over all names of the kernel and of every module for
each: seconds in an emulated machine. Here one pass finds them all, and `aimed` hands the numbers to libbpf.
"""

import contextlib
import errno
import os

from libc.errno cimport ENOENT
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset, strchr, strcmp

from cython_ext.headers.bpf_libbpf cimport (
    BPF_PROG_TYPE_TRACING,
    BPF_TRACE_FENTRY,
    BPF_TRACE_FEXIT,
    BPF_TRACE_RAW_TP,
    BTF_KIND_FUNC,
    BTF_KIND_TYPEDEF,
    bpf_attach_type,
    bpf_btf_get_fd_by_id,
    bpf_btf_get_next_id,
    bpf_btf_info,
    bpf_link,
    bpf_obj_get_info_by_fd,
    bpf_prog_load_opts,
    bpf_program,
    bpf_program__attach_trace,
    bpf_program__expected_attach_type,
    bpf_program__name,
    bpf_program__section_name,
    btf,
    btf__free,
    btf__load_module_btf,
    btf__load_vmlinux_btf,
    btf__name_by_offset,
    btf__type_by_id,
    btf__type_cnt,
    btf_kind,
    btf_type,
    libbpf_find_vmlinux_btf_id,
    libbpf_prog_handler_opts,
    libbpf_register_prog_handler,
)

TRACEPOINT = b"btf_trace_"  # what the kernel's typedefs of tracepoints begin with


cdef enum:
    PLACES = 1024     # of the table of wanted names, a power of two
    MODULE_NAME = 64  # bytes, the kernel's MODULE_NAME_LEN and more
    MOST_TARGETS = 512
    PROGRAM_NAME = 64

cdef struct Wanted:
    const char *name
    uint32_t kind
    uint32_t id  # 0: not found
    int where    # 0: the kernel itself, else the place among the modules, from 1


cdef inline uint32_t hashed(const char *name) noexcept nogil:
    cdef uint32_t value = 2166136261u
    while name[0]:
        value = (value ^ <uint8_t> name[0]) * 16777619u
        name += 1
    return value


cdef void look(const btf *types, uint32_t first, int where, Wanted *table) noexcept nogil:
    """Note what the BTF has, in one pass: a search for each name would take seconds in an emulated machine."""
    cdef uint32_t number, at
    cdef uint32_t count = btf__type_cnt(types)
    cdef const btf_type *kind
    cdef const char *name
    for number in range(first, count):
        kind = btf__type_by_id(types, number)
        if btf_kind(kind) != BTF_KIND_FUNC and btf_kind(kind) != BTF_KIND_TYPEDEF:
            continue
        name = btf__name_by_offset(types, kind.name_off)
        at = hashed(name) & (PLACES - 1)
        while table[at].name is not NULL:
            if not table[at].id and table[at].kind == btf_kind(kind) and strcmp(table[at].name, name) == 0:
                table[at].id = number
                table[at].where = where
            at = (at + 1) & (PLACES - 1)


def kernel_knows(functions, tracepoints, modules=()):
    """Where the BTF of the running kernel, or of one of the named modules, has the functions and tracepoints.

    Returns two dicts of name to (id, module), module "" for the kernel itself; what is not there is in neither. OSError
    where the kernel has no BTF. A module that is not loaded, or has no BTF, adds none. No more than some hundred names.
    """
    cdef Wanted[PLACES] table
    cdef btf *kernel
    cdef btf *module
    cdef uint32_t at, base
    cdef int where
    wanted = [(name.encode(), BTF_KIND_FUNC) for name in functions]
    wanted += [(TRACEPOINT + name.encode(), BTF_KIND_TYPEDEF) for name in tracepoints]
    if len(wanted) > PLACES // 2:
        raise ValueError("too many names")
    memset(table, 0, sizeof(table))
    for name, kind in wanted:
        at = hashed(name) & (PLACES - 1)
        while table[at].name is not NULL:
            at = (at + 1) & (PLACES - 1)
        table[at].name = name  # the list keeps the bytes alive
        table[at].kind = kind
    kernel = btf__load_vmlinux_btf()
    if kernel is NULL:
        code = c_errno
        raise OSError(code, os.strerror(code), "/sys/kernel/btf/vmlinux")
    base = btf__type_cnt(kernel)
    look(kernel, 1, 0, table)
    names = ["", *modules]
    for where in range(1, len(names)):
        if not os.path.exists(f"/sys/kernel/btf/{names[where]}"):
            continue  # libbpf would complain
        module = btf__load_module_btf(names[where].encode(), kernel)
        if module is not NULL:
            look(module, base, where, table)
            btf__free(module)
    btf__free(kernel)
    found, points = {}, {}
    for at in range(<uint32_t> PLACES):
        if table[at].id:
            name = table[at].name.decode()
            if table[at].kind == BTF_KIND_FUNC:
                found[name] = (table[at].id, names[table[at].where])
            else:
                points[name[len(TRACEPOINT):]] = (table[at].id, names[table[at].where])
    return found, points


def module_btf(name):
    """Open a module's BTF as an object of the kernel's: a descriptor, the caller's to close. OSError if it has none.
    """
    cdef uint32_t number = 0, size
    cdef bpf_btf_info info
    cdef char[MODULE_NAME] called
    cdef int fd
    while bpf_btf_get_next_id(number, &number) == 0:
        fd = bpf_btf_get_fd_by_id(number)
        if fd < 0:
            continue  # unloaded meanwhile
        memset(&info, 0, sizeof(info))
        info.name = <unsigned long> called
        info.name_len = MODULE_NAME
        size = sizeof(info)
        if bpf_obj_get_info_by_fd(fd, &info, &size) == 0 and called == name.encode():
            return fd
        os.close(fd)
    raise OSError(errno.ENOENT, f"the module {name} has no BTF")


# --- what a program is attached to ----------------------------------------------------------------------------------

cdef struct Target:
    char[PROGRAM_NAME] program
    uint32_t id
    int btf_fd  # of the module that has it; 0: the kernel itself

# Of the load that is going on: libbpf calls `aim` for each program.
cdef Target[MOST_TARGETS] targeted
cdef int targets_held = 0


cdef int aim(bpf_program *program, bpf_prog_load_opts *opts, long cookie) noexcept nogil:
    """Give a program its target: libbpf would search all names of the kernel once a program."""
    cdef const char *name = bpf_program__name(program)
    cdef int k
    for k in range(targets_held):
        if strcmp(targeted[k].program, name) == 0:
            opts.attach_btf_id = targeted[k].id
            opts.attach_btf_obj_fd = targeted[k].btf_fd
            return 0
    # of an object that was opened elsewhere: as libbpf does it, one search a program
    cdef const char *target = strchr(bpf_program__section_name(program), b'/')
    cdef int found = -ENOENT
    if target != NULL:
        found = libbpf_find_vmlinux_btf_id(target + 1, bpf_program__expected_attach_type(program))
    if found < 0:
        return found
    opts.attach_btf_id = <uint32_t> found
    return 0


cdef int link_up(const bpf_program *program, long cookie, bpf_link **link) noexcept nogil:
    """Attach a program of these sections, as libbpf's own handler does."""
    link[0] = bpf_program__attach_trace(program)
    return 0 if link[0] != NULL else -c_errno


cdef int register(const char *section, bpf_attach_type kind) except -1:
    cdef libbpf_prog_handler_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.prog_prepare_load_fn = aim
    opts.prog_attach_fn = link_up
    if libbpf_register_prog_handler(section, BPF_PROG_TYPE_TRACING, kind, &opts) < 0:
        raise ImportError(f"libbpf takes no handler for {section.decode()}: {os.strerror(c_errno)}")
    return 0


register(b"fentry+", BPF_TRACE_FENTRY)
register(b"fexit+", BPF_TRACE_FEXIT)
register(b"tp_btf+", BPF_TRACE_RAW_TP)


@contextlib.contextmanager
def aimed(targets):
    """Let `aim` know these targets; a module's BTF is held open meanwhile.

    :param targets: program name -> a value of `kernel_knows`
    :raises ValueError: if they are too many, or a name is too long
    """
    global targets_held
    fds = {module: module_btf(module) for module in {module for _, module in targets.values()} if module}
    if len(targets) > MOST_TARGETS or any(len(program) >= PROGRAM_NAME for program in targets):
        raise ValueError("too many targets, or a program's name is too long")
    try:
        targets_held = 0
        for program, (number, module) in targets.items():
            name = program.encode()
            memcpy(targeted[targets_held].program, <const char *> name, len(name) + 1)
            targeted[targets_held].id = number
            targeted[targets_held].btf_fd = fds.get(module, 0)
            targets_held += 1
        yield
    finally:
        targets_held = 0
        for fd in fds.values():
            os.close(fd)
