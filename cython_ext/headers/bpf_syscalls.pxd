# distutils: libraries = bpf
"""<bpf/bpf.h>: the system calls, for a program that is put together here and not compiled from C."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t


cdef extern from "bpf/bpf.h" nogil:
    enum bpf_map_type:
        BPF_MAP_TYPE_XSKMAP
    enum bpf_prog_type:
        BPF_PROG_TYPE_XDP
    enum bpf_attach_type:
        BPF_XDP
    enum:
        BPF_ANY
        XDP_PASS

    struct bpf_insn:
        uint8_t code
        int32_t imm

    struct bpf_map_create_opts:
        pass

    struct bpf_prog_load_opts:
        size_t sz
        char *log_buf
        size_t log_size
        uint32_t log_level

    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags

    # descriptors, or -errno
    int bpf_map_create(bpf_map_type kind, const char *name, uint32_t key_size, uint32_t value_size,
                       uint32_t max_entries, const bpf_map_create_opts *opts)
    int bpf_map_update_elem(int fd, const void *key, const void *value, unsigned long long flags)
    int bpf_prog_load(bpf_prog_type kind, const char *name, const char *license, const bpf_insn *instructions,
                      size_t count, const bpf_prog_load_opts *opts)
    int bpf_link_create(int program, int target, bpf_attach_type kind, const bpf_link_create_opts *opts)


cdef extern from "linux/if_link.h" nogil:
    enum:
        XDP_FLAGS_SKB_MODE
        XDP_FLAGS_DRV_MODE
