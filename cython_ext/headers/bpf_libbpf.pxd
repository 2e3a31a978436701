# distutils: libraries = bpf
"""<bpf/libbpf.h> and <bpf/bpf.h>: opening, loading and attaching the ledger's programs, and its ring buffer."""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from "<stdarg.h>" nogil:
    ctypedef struct va_list:
        pass

cdef extern from "<bpf/libbpf.h>" nogil:
    struct bpf_object:
        pass
    struct bpf_program:
        pass
    struct bpf_map:
        pass
    struct bpf_link:
        pass
    struct ring_buffer:
        pass
    struct ring_buffer_opts:
        pass

    enum libbpf_print_level:
        LIBBPF_WARN
        LIBBPF_INFO
        LIBBPF_DEBUG
    ctypedef int (*libbpf_print_fn_t)(libbpf_print_level level, const char *form, va_list arguments) noexcept
    libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t fn)
    uint32_t libbpf_major_version()
    uint32_t libbpf_minor_version()
    int libbpf_num_possible_cpus()

    # pointers are NULL and integers negative on failure, with errno set
    bpf_object *bpf_object__open_file(const char *path, const void *opts)
    int bpf_object__load(bpf_object *obj)
    void bpf_object__close(bpf_object *obj)
    bpf_program *bpf_object__next_program(const bpf_object *obj, bpf_program *prog)
    bpf_program *bpf_object__find_program_by_name(const bpf_object *obj, const char *name)
    bpf_map *bpf_object__find_map_by_name(const bpf_object *obj, const char *name)
    const char *bpf_program__name(const bpf_program *prog)
    const char *bpf_program__section_name(const bpf_program *prog)
    int bpf_program__set_autoload(bpf_program *prog, bint autoload)
    int bpf_program__set_type(bpf_program *prog, bpf_prog_type type)
    int bpf_program__set_expected_attach_type(bpf_program *prog, bpf_attach_type type)
    int bpf_program__fd(const bpf_program *prog)
    bpf_link *bpf_program__attach(const bpf_program *prog)
    bpf_link *bpf_program__attach_trace(const bpf_program *prog)
    bpf_link *bpf_program__attach_cgroup(const bpf_program *prog, int cgroup_fd)
    # called for each program of a section before it is loaded; may change how it is
    ctypedef int (*libbpf_prog_prepare_load_fn_t)(bpf_program *prog, bpf_prog_load_opts *opts, long cookie) noexcept
    ctypedef int (*libbpf_prog_attach_fn_t)(const bpf_program *prog, long cookie, bpf_link **link) noexcept
    struct libbpf_prog_handler_opts:
        size_t sz
        libbpf_prog_prepare_load_fn_t prog_prepare_load_fn
        libbpf_prog_attach_fn_t prog_attach_fn
    int libbpf_find_vmlinux_btf_id(const char *name, bpf_attach_type attach_type)
    bpf_attach_type bpf_program__expected_attach_type(const bpf_program *prog)
    int libbpf_register_prog_handler(const char *section, bpf_prog_type prog_type, bpf_attach_type attach_type,
                                     const libbpf_prog_handler_opts *opts)
    int bpf_link__destroy(bpf_link *link)
    int bpf_link__fd(const bpf_link *link)
    int bpf_map__fd(const bpf_map *map)
    uint32_t bpf_map__value_size(const bpf_map *map)
    uint32_t bpf_map__max_entries(const bpf_map *map)
    int bpf_map__set_max_entries(bpf_map *map, uint32_t max_entries)
    # before loading: where the initial values of .rodata and .data stand
    void *bpf_map__initial_value(bpf_map *map, size_t *size)

    uint32_t bpf_map__key_size(const bpf_map *map)
    int bpf_xdp_attach(int ifindex, int prog_fd, uint32_t flags, const void *opts)

    ctypedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size) noexcept nogil
    ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn fn, void *ctx, const ring_buffer_opts *opts)
    void ring_buffer__free(ring_buffer *rb)
    int ring_buffer__consume(ring_buffer *rb)

cdef extern from "<bpf/bpf.h>" nogil:
    enum bpf_prog_type:
        BPF_PROG_TYPE_CGROUP_SKB
        BPF_PROG_TYPE_TRACING
    enum bpf_attach_type:
        BPF_CGROUP_INET_INGRESS
        BPF_TRACE_FENTRY
        BPF_TRACE_FEXIT
        BPF_TRACE_RAW_TP
    struct bpf_prog_load_opts:
        uint32_t attach_btf_id
        uint32_t attach_btf_obj_fd
    int bpf_map_lookup_elem(int fd, const void *key, void *value)
    struct bpf_prog_info:
        unsigned long long recursion_misses
    struct bpf_btf_info:
        unsigned long long name
        uint32_t name_len
    int bpf_btf_get_next_id(uint32_t start, uint32_t *next)
    int bpf_btf_get_fd_by_id(uint32_t number)
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *size)
    int bpf_iter_create(int link_fd)
    struct bpf_test_run_opts:
        size_t sz
        void *ctx_in  # a program of type `syscall` writes its answer there too
        uint32_t ctx_size_in
        uint32_t retval
    int bpf_prog_test_run_opts(int prog_fd, bpf_test_run_opts *opts)
    int bpf_map_get_next_key(int fd, const void *cur_key, void *next_key)
    int bpf_map_update_elem(int fd, const void *key, const void *value, unsigned long long flags)

cdef extern from "<bpf/btf.h>" nogil:
    struct btf:
        pass
    enum:
        BTF_KIND_INT
        BTF_KIND_PTR
        BTF_KIND_ARRAY
        BTF_KIND_STRUCT
        BTF_KIND_ENUM
        BTF_KIND_FUNC
        BTF_KIND_TYPEDEF
        BTF_INT_SIGNED
    struct btf_array:
        uint32_t type
        uint32_t nelems
    struct btf_member:
        uint32_t name_off
        uint32_t type
    struct btf_enum:
        uint32_t name_off
        int val
    int btf__find_by_name_kind(const btf *btf, const char *type_name, uint32_t kind)
    btf_enum *btf_enum_of "btf_enum"(const btf_type *t)
    uint32_t btf_vlen(const btf_type *t)
    btf_array *btf_array_of "btf_array"(const btf_type *t)
    btf_member *btf_members(const btf_type *t)
    uint32_t btf_member_bit_offset(const btf_type *t, uint32_t member)
    uint8_t btf_int_encoding(const btf_type *t)
    int btf__resolve_type(const btf *btf, uint32_t type_id)  # behind typedefs and qualifiers
    btf *btf__parse(const char *path, void *ext)  # an object file's own
    btf *btf__load_vmlinux_btf()
    btf *btf__load_module_btf(const char *module, btf *vmlinux)
    struct btf_type:
        uint32_t name_off
        uint32_t size
    uint32_t btf__type_cnt(const btf *btf)  # of a module's: those of the kernel before its own
    const btf_type *btf__type_by_id(const btf *btf, uint32_t id)
    const char *btf__name_by_offset(const btf *btf, uint32_t offset)
    uint32_t btf_kind(const btf_type *t)
    void btf__free(btf *btf)
