# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: needs libbpf and its headers
"""BPF programs that answer when they are asked: run once on a context (`syscall`), read to the end (iterators), or
counting while they are attached.

An iterator's link and descriptor live as long as the reading, a tracing program's link as long as the object. What the
programs are told and what they find goes through the context, the object's own sections and its maps, as bytes that the
caller lays out.
"""

import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from cython_ext.headers.bpf_libbpf cimport (
    BTF_KIND_ENUM,
    bpf_iter_create,
    bpf_link,
    bpf_link__destroy,
    bpf_link__fd,
    bpf_map,
    bpf_map__fd,
    bpf_map__initial_value,
    bpf_map__key_size,
    bpf_map__max_entries,
    bpf_map__set_max_entries,
    bpf_map__value_size,
    bpf_map_get_next_key,
    bpf_map_lookup_elem,
    bpf_map_update_elem,
    bpf_object,
    bpf_object__close,
    bpf_object__find_map_by_name,
    bpf_object__find_program_by_name,
    bpf_object__load,
    bpf_object__next_program,
    bpf_object__open_file,
    bpf_prog_test_run_opts,
    bpf_program,
    bpf_program__attach,
    bpf_program__attach_cgroup,
    bpf_program__fd,
    bpf_program__name,
    bpf_program__set_autoload,
    bpf_test_run_opts,
    bpf_xdp_attach,
    btf,
    btf__find_by_name_kind,
    btf__free,
    btf__load_vmlinux_btf,
    btf__name_by_offset,
    btf__type_by_id,
    btf_enum,
    btf_enum_of,
    btf_type,
    btf_vlen,
)
from cython_ext.bpf.tracer import LoadError, words


cdef enum:
    A_READ = 1 << 18  # bytes


cdef class Reader:
    """One BPF object, loaded. A context manager; `close()` unloads and is idempotent. For one thread at a time.

    :param path: the object file
    :param constants: become the object's .rodata, and must be as long; b"": it has none
    :param without: programs that are not loaded
    :param sizes: maps that get another number of elements than the source says
    :raises LoadError: (an OSError) with libbpf's and the verifier's words
    """

    cdef bpf_object *object
    cdef list links  # addresses of bpf_link
    cdef void *mapped
    cdef size_t mapped_size
    cdef str mapped_name

    def __init__(self, path, const uint8_t[::1] constants not None, without=(), sizes=None):
        cdef bpf_program *program = NULL
        cdef size_t size = 0
        cdef void *value
        words()
        self.links = []
        self.object = bpf_object__open_file(os.fsencode(path), NULL)
        if self.object is NULL:
            code = c_errno
            raise LoadError(code, "", words())
        while True:
            program = bpf_object__next_program(self.object, program)
            if program is NULL:
                break
            bpf_program__set_autoload(program, bpf_program__name(program).decode() not in without)
        if constants.shape[0]:
            value = <void *> bpf_map__initial_value(self.table(b".rodata"), &size)
            if value is NULL or size != <size_t> constants.shape[0]:
                raise LoadError(22, "", f".rodata has {size} bytes in the object, {constants.shape[0]} here")
            memcpy(value, &constants[0], size)
        for name, entries in (sizes or {}).items():
            bpf_map__set_max_entries(self.table(name.encode()), entries)
        status = bpf_object__load(self.object)
        if status < 0:
            text = words()
            raise LoadError(-status, "", text)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        self._unmap()
        if self.object is not NULL:
            bpf_object__close(self.object)

    cdef void _unmap(self) noexcept:
        if self.mapped is not NULL:
            munmap(self.mapped, self.mapped_size)
            self.mapped = NULL

    def close(self):
        """Detach and unload; harmless when called twice."""
        cdef size_t address
        for address in self.links or ():
            bpf_link__destroy(<bpf_link *> address)
        self.links = []
        self._unmap()
        if self.object is not NULL:
            bpf_object__close(self.object)
            self.object = NULL

    cdef bpf_map *table(self, const char *name) except NULL:
        cdef bpf_map *found = NULL
        if self.object is not NULL:
            found = bpf_object__find_map_by_name(self.object, name)
        if found is NULL:
            raise LoadError(2, "", f"the object has no map {name.decode()}, or is closed")
        return found

    cdef bpf_program *program(self, name) except NULL:
        cdef bpf_program *found = NULL
        if self.object is not NULL:
            found = bpf_object__find_program_by_name(self.object, name.encode())
        if found is NULL or bpf_program__fd(found) < 0:
            raise OSError(2, "this program is not loaded", name)
        return found

    def run(self, name, uint8_t[::1] context not None):
        """Run a program of type `syscall`; releases the GIL.

        :param context: a writable buffer of bytes, which the program may change
        :return: what it returned
        :raises OSError: if it is not loaded, or the kernel does not run it
        """
        cdef bpf_test_run_opts options
        cdef int status
        cdef int fd = bpf_program__fd(self.program(name))
        memset(&options, 0, sizeof(options))
        options.sz = sizeof(options)
        options.ctx_in = &context[0]
        options.ctx_size_in = <uint32_t> context.shape[0]
        with nogil:
            status = bpf_prog_test_run_opts(fd, &options)
        if status < 0:
            raise OSError(-status, os.strerror(-status), name)
        return options.retval

    def attach(self, name):
        """Attach a tracing program until `close`.

        :raises OSError: with what libbpf or the kernel said
        """
        cdef bpf_link *link
        words()
        link = bpf_program__attach(self.program(name))
        if link is NULL:
            raise _refused(name)
        self.links.append(<size_t> link)

    def attach_cgroup(self, name, int cgroup_fd):
        """Attach a cgroup_skb program until `close`.

        :param cgroup_fd: descriptor of a cgroup (v2), which stays the caller's
        :raises OSError: with what libbpf or the kernel said
        """
        cdef bpf_link *link
        words()
        link = bpf_program__attach_cgroup(self.program(name), cgroup_fd)
        if link is NULL:
            raise _refused(name)
        self.links.append(<size_t> link)

    def attach_xdp(self, name, int device, uint32_t flags):
        """Attach an XDP program to a device of the calling thread's namespace; it stays until the device goes.

        :param device: its number
        :param flags: XDP_FLAGS_*
        :raises OSError: with the kernel's error
        """
        status = bpf_xdp_attach(device, bpf_program__fd(self.program(name)), flags, NULL)
        if status < 0:
            raise OSError(-status, os.strerror(-status), name)

    def items(self, name):
        """A hash's keys and values. What is added meanwhile may be missing.

        :param name: of the map
        :return: a list of pairs of bytes
        """
        cdef bpf_map *table = self.table(name.encode())
        cdef int fd = bpf_map__fd(table)
        key = bytearray(bpf_map__key_size(table))
        value = bytearray(bpf_map__value_size(table))
        cdef uint8_t[::1] at = key
        cdef uint8_t[::1] held = value
        found = []
        cdef const void *before = NULL
        while bpf_map_get_next_key(fd, before, &at[0]) == 0:
            before = &at[0]
            if bpf_map_lookup_elem(fd, &at[0], &held[0]) == 0:
                found.append((bytes(key), bytes(value)))
        return found

    def iterate(self, name):
        """Read an iterator to its end. It sees the calling thread's namespaces.

        :return: all that its program wrote, as bytes
        :raises OSError: if it cannot be attached or read
        """
        cdef bpf_link *link
        cdef int descriptor
        words()
        link = bpf_program__attach(self.program(name))
        if link is NULL:
            raise _refused(name)
        try:
            descriptor = bpf_iter_create(bpf_link__fd(link))
            if descriptor < 0:
                code = c_errno
                raise OSError(code, os.strerror(code), name)
            try:
                pieces = []
                while piece := os.read(descriptor, A_READ):
                    pieces.append(piece)
                return b"".join(pieces)
            finally:
                os.close(descriptor)
        finally:
            bpf_link__destroy(link)

    def put(self, name, const uint8_t[::1] value not None):
        """Write the one element of a section's map (.data, .bss).

        :param value: its bytes
        :raises ValueError: if the map's element has another length
        """
        cdef bpf_map *table = self.table(name.encode())
        cdef uint32_t key = 0
        if bpf_map__value_size(table) != <uint32_t> value.shape[0]:
            raise ValueError(f"{name} has {bpf_map__value_size(table)} bytes in the object, {value.shape[0]} here")
        if bpf_map_update_elem(bpf_map__fd(table), &key, &value[0], 0) < 0:
            code = c_errno
            raise OSError(code, os.strerror(code), name)

    def take(self, name, size_t count, size_t size):
        """Copy elements out of an array that may be mapped (BPF_F_MMAPABLE).

        :param count: how many, from the first on
        :param size: bytes of an element, a multiple of 8
        :return: bytes; programs may have written to them meanwhile
        :raises ValueError: if the array has other elements, or fewer
        :raises OSError: if the kernel does not map it
        """
        cdef bpf_map *table = self.table(name.encode())
        cdef size_t entries = bpf_map__max_entries(table)
        if bpf_map__value_size(table) != size or size % 8:
            raise ValueError(f"an element of {name} has {bpf_map__value_size(table)} bytes in the object, {size} here")
        if count > entries:
            raise ValueError(f"{name} has {entries} elements, not {count}")
        if self.mapped_name != name:
            self._unmap()
        if self.mapped is NULL:
            self.mapped_name = name
            self.mapped_size = (entries * size + 4095) // 4096 * 4096
            self.mapped = mmap(NULL, self.mapped_size, PROT_READ, MAP_SHARED, bpf_map__fd(table), 0)
            if self.mapped == MAP_FAILED:
                self.mapped = NULL
                code = c_errno
                raise OSError(code, os.strerror(code), name)
        return (<uint8_t *> self.mapped)[:count * size]

    def clear(self, name):
        """Set every byte of an array that may be mapped to 0. No program may be writing to it.

        :param name: of the map, which has the flag BPF_F_MMAPABLE
        :raises OSError: if the kernel does not map it for writing
        """
        cdef bpf_map *table = self.table(name.encode())
        cdef size_t size = (<size_t> bpf_map__max_entries(table) * bpf_map__value_size(table) + 4095) // 4096 * 4096
        cdef void *all_of_it = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, bpf_map__fd(table), 0)
        if all_of_it == MAP_FAILED:
            code = c_errno
            raise OSError(code, os.strerror(code), name)
        memset(all_of_it, 0, size)
        munmap(all_of_it, size)


cdef _refused(name):
    code = c_errno
    text = words().strip().splitlines()
    return OSError(code, text.pop() if text else os.strerror(code), name)


def enumeration(name):
    """The running kernel's enumeration of that name, from its BTF.

    :return: a dict of value to name; {} if there is none
    :raises OSError: without BTF
    """
    cdef btf *kernel = btf__load_vmlinux_btf()
    cdef const btf_type *kind
    cdef btf_enum *members
    cdef int number
    cdef uint32_t index
    if kernel is NULL:
        code = c_errno
        words()
        raise OSError(code, os.strerror(code), "/sys/kernel/btf/vmlinux")
    result = {}
    try:
        number = btf__find_by_name_kind(kernel, name.encode(), BTF_KIND_ENUM)
        if number > 0:
            kind = btf__type_by_id(kernel, <uint32_t> number)
            members = btf_enum_of(kind)
            for index in range(btf_vlen(kind)):
                result[members[index].val] = btf__name_by_offset(kernel, members[index].name_off).decode()
    finally:
        btf__free(kernel)
    return result
