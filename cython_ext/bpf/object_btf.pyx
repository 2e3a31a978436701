# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: needs libbpf and its headers
"""What an object file of BPF programs says of its own structures, in BTF: so that no layout has to be typed twice."""

import errno
import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint32_t

from cython_ext.headers.bpf_libbpf cimport (
    BTF_INT_SIGNED,
    BTF_KIND_ARRAY,
    BTF_KIND_ENUM,
    BTF_KIND_INT,
    BTF_KIND_PTR,
    BTF_KIND_STRUCT,
    btf,
    btf__find_by_name_kind,
    btf__free,
    btf__name_by_offset,
    btf__parse,
    btf__resolve_type,
    btf__type_by_id,
    btf_array,
    btf_array_of,
    btf_int_encoding,
    btf_kind,
    btf_member,
    btf_member_bit_offset,
    btf_members,
    btf_type,
    btf_vlen,
)


def structures(path, names):
    """The structures of these names in the object file: a dict of name to what numpy.dtype takes.

    An array of chars is a string of bytes, a pointer a number. OSError (ENOENT) where the object has no such structure,
    ValueError if one has a member that NumPy knows nothing like (a bit field, a union).
    """
    cdef btf *types
    cdef int number
    types = btf__parse(os.fsencode(path), NULL)
    if types is NULL:
        code = c_errno
        raise OSError(code, os.strerror(code), os.fspath(path))
    result = {}
    try:
        for name in names:
            number = btf__find_by_name_kind(types, name.encode(), BTF_KIND_STRUCT)
            if number <= 0:
                raise OSError(errno.ENOENT, f"the object has no struct {name}", os.fspath(path))
            result[name] = form(types, <uint32_t> number)
    finally:
        btf__free(types)
    return result


cdef form(const btf *types, uint32_t number):
    """What numpy.dtype takes for a type."""
    cdef const btf_type *kind
    cdef const btf_array *array
    cdef int resolved = btf__resolve_type(types, number)
    if resolved <= 0:
        raise ValueError("a type that leads nowhere")
    kind = btf__type_by_id(types, <uint32_t> resolved)
    if btf_kind(kind) == BTF_KIND_INT:
        return f"{'i' if btf_int_encoding(kind) & BTF_INT_SIGNED else 'u'}{kind.size}"
    if btf_kind(kind) == BTF_KIND_ENUM:
        return f"u{kind.size}"
    if btf_kind(kind) == BTF_KIND_PTR:
        return "u8"
    if btf_kind(kind) == BTF_KIND_ARRAY:
        array = btf_array_of(kind)
        element = form(types, array.type)
        # char itself is "i1" on some machines and "u1" on others
        return f"S{array.nelems}" if element in ("i1", "u1") else (element, (array.nelems,))
    if btf_kind(kind) == BTF_KIND_STRUCT:
        return members(types, kind)
    raise ValueError(f"{btf__name_by_offset(types, kind.name_off).decode()} is neither number, array nor structure")


cdef members(const btf *types, const btf_type *kind):
    cdef const btf_member *member = btf_members(kind)
    cdef uint32_t k, bits
    names, formats, offsets = [], [], []
    for k in range(btf_vlen(kind)):
        bits = btf_member_bit_offset(kind, k)
        if bits % 8:
            raise ValueError("a bit field has no place in an array")
        names.append(btf__name_by_offset(types, member[k].name_off).decode())
        formats.append(form(types, member[k].type))
        offsets.append(bits // 8)
    return {"names": names, "formats": formats, "offsets": offsets, "itemsize": kind.size}
