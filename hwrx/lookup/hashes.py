"""The kernel's hashes of addresses and ports, in its own arithmetic, with every step kept.

Sources: include/linux/jhash.h; include/net/netns/hash.h (net_hash_mix); include/net/ip.h (ipv4_portaddr_hash);
include/net/ipv6.h (ipv6_portaddr_hash, __ipv6_addr_jhash); include/net/udp.h (udp_hashfn, udp_hashslot2);
include/net/inet_sock.h (__inet_ehashfn); include/net/inet6_hashtables.h (__inet6_ehashfn). All values are unsigned
32-bit words. An address is taken as the kernel holds it, in network order, and its words are read in the machine's.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Sequence

from msgspec import Struct

JHASH_INITVAL = 0xDEADBEEF
WORD = 0xFFFFFFFF
# jhash_2words and its kin start with the initial value and the number of bytes, as if a buffer were hashed
_TAIL = (("c", "b", 14), ("a", "c", 11), ("b", "a", 25), ("c", "b", 16), ("a", "c", 4), ("b", "a", 14), ("c", "b", 24))
_MIX = (("a", "c", 4, "b"), ("b", "a", 6, "c"), ("c", "b", 8, "a"), ("a", "c", 16, "b"), ("b", "a", 19, "c"),
        ("c", "b", 4, "a"))  # fmt: skip

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Step(Struct, frozen=True):
    """One line of the computation: what is computed, in the kernel's words, and what it comes to."""

    what: str
    value: int
    shown: str = ""  # in what base, where hexadecimal says less

    def text(self) -> str:
        """Return the value as it is printed."""
        return self.shown or f"0x{self.value:08x}"


class Steps(list[Step]):
    """A computation being written down."""

    def note(self, what: str, value: int, *, decimal: bool = False) -> int:
        """Write a line down and return its value."""
        self.append(Step(what, value, f"{value}" if decimal else ""))
        return value


def rol32(word: int, shift: int) -> int:
    """Rotate left."""
    return (word << shift | word >> (32 - shift)) & WORD


def words_of(address: Address) -> tuple[int, ...]:
    """Return an address as the kernel's 32-bit words: network order in memory, read in the machine's order."""
    return struct.unpack(f"={len(address.packed) // 4}I", address.packed)


def be16(port: int) -> int:
    """Return a port as a __be16 is read by the machine."""
    return port if sys.byteorder == "big" else (port & 0xFF) << 8 | port >> 8


def jhash_final(a: int, b: int, c: int, steps: Steps | None = None) -> int:
    """__jhash_final: seven rounds of exclusive or, and subtraction of a rotation."""
    held = {"a": a, "b": b, "c": c}
    for target, source, shift in _TAIL:
        held[target] = ((held[target] ^ held[source]) - rol32(held[source], shift)) & WORD
        if steps is not None:
            steps.note(f"{target} = ({target} ^ {source}) - rol32({source}, {shift})", held[target])
    return held["c"]


def jhash_3words(a: int, b: int, c: int, initval: int, steps: Steps | None = None, *, words: int = 3) -> int:
    """jhash_3words, and with `words` 1 or 2 and zeros for the rest jhash_1word and jhash_2words."""
    start = (initval + JHASH_INITVAL + (words << 2)) & WORD
    a, b, c = (a + start) & WORD, (b + start) & WORD, (c + start) & WORD
    if steps is not None:
        steps.note(f"start = initval + JHASH_INITVAL + {words << 2}", start)
        for name, value in zip("abc", (a, b, c), strict=True):
            steps.note(f"{name} = word + start", value)
    return jhash_final(a, b, c, steps)


def jhash_1word(a: int, initval: int, steps: Steps | None = None) -> int:
    """jhash_1word."""
    return jhash_3words(a, 0, 0, initval, steps, words=1)


def jhash2(words: Sequence[int], initval: int, steps: Steps | None = None) -> int:
    """jhash2 of an array of words: three at a time, the last one to three through the final rounds."""
    start = (JHASH_INITVAL + (len(words) << 2) + initval) & WORD
    held = {"a": start, "b": start, "c": start}
    if steps is not None:
        steps.note(f"a = b = c = JHASH_INITVAL + {len(words) << 2} + initval", start)
    left = list(words)
    while len(left) > 3:
        for name in "abc":
            held[name] = (held[name] + left.pop(0)) & WORD
        for target, source, shift, third in _MIX:
            held[target] = (held[target] - held[source] & WORD) ^ rol32(held[source], shift)
            held[source] = (held[source] + held[third]) & WORD
        if steps is not None:
            for name in "abc":
                steps.note(f"{name} after words 0..2 and __jhash_mix", held[name])
    if not left:
        return held["c"]
    for name, word in zip("abc", left, strict=False):
        held[name] = (held[name] + word) & WORD
    return jhash_final(held["a"], held["b"], held["c"], steps)


def udp_hashfn(port: int, hash_mix: int, mask: int, steps: Steps | None = None) -> int:
    """udp_hashfn: the slot by port alone, used where addresses are not known (binding, multicast)."""
    slot = (port + hash_mix) & mask
    if steps is not None:
        steps.note("udp_hashfn: (port + hash_mix) & mask", slot, decimal=True)
    return slot


def mapped_address(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address within ::ffff:a.b.c.d; None for all others."""
    return address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None


def portaddr_hash(address: Address, port: int, hash_mix: int, steps: Steps | None = None) -> int:
    """ipv4_portaddr_hash or ipv6_portaddr_hash: of UDP's second table and of TCP's listeners, before the mask."""
    words = words_of(address)
    if isinstance(address, ipaddress.IPv6Address) and int(address) and mapped_address(address) is None:
        if steps is not None:
            steps.note("s6_addr32[0..3] through jhash2, initval = hash_mix", hash_mix)
        hashed = jhash2(words, hash_mix, steps)
    else:
        word = words[-1]  # of :: it is 0, as of 0.0.0.0: the wildcards of both families share their slot
        if steps is not None:
            steps.note("the address as one word", word)
            steps.note("jhash_1word, initval = hash_mix", hash_mix)
        hashed = jhash_1word(word, hash_mix, steps)
    result = hashed ^ port
    if steps is not None:
        steps.note(f"^ port ({port})", result)
    return result


class Form(Struct, frozen=True):
    """How a kernel hashes four values; there have been three ways, and nothing but the results tells which.

    `folded`: of the far end's IPv6 address the first two words are folded into one; since 6.5, and in the stable
    kernels of that time, all four are hashed (commit d11b0df7ddf1). `port_outside`: since 6.15 the local port is added
    to the hash instead of hashed, so that one client's ports spread evenly.
    """

    folded: bool = False
    port_outside: bool = False


# the newest first, but for the one that moved the port: it came last
FORMS = (Form(), Form(port_outside=True), Form(folded=True))


def ipv6_addr_jhash(address: ipaddress.IPv6Address, secret: int, form: Form, steps: Steps | None = None) -> int:
    """__ipv6_addr_jhash: the far end's IPv6 address as one word."""
    words = words_of(address)
    if form.folded:
        if steps is not None:
            steps.note("__ipv6_addr_jhash: jhash_3words of [0]^[1], [2], [3], initval = its secret", secret)
        return jhash_3words(words[0] ^ words[1], words[2], words[3], secret, steps)
    if steps is not None:
        steps.note("__ipv6_addr_jhash: jhash2 of s6_addr32[0..3], initval = its secret", secret)
    return jhash2(words, secret, steps)


class Secrets(Struct, frozen=True):
    """What the kernel draws by itself and adds to the hash of four values: of TCP's or of UDP's. 0: not drawn yet."""

    ehash: int = 0  # inet_ehash_secret, udp_ehash_secret
    ehash6: int = 0  # inet6_ehash_secret, udp6_ehash_secret
    address6: int = 0  # ipv6_hash_secret (later tcp_ipv6_hash_secret), udp_ipv6_hash_secret


def ehashfn(
    local: Address,
    local_port: int,
    far: Address,
    far_port: int,
    hash_mix: int,
    secrets: Secrets,
    form: Form = FORMS[0],
    steps: Steps | None = None,
) -> int:
    """inet_ehashfn, inet6_ehashfn, udp_ehashfn, udp6_ehashfn: of both addresses and both ports, before the mask."""
    inner, outer = mapped_address(local), mapped_address(far)
    if inner is not None and outer is not None:
        local, far = inner, outer
    if isinstance(far, ipaddress.IPv6Address):
        near_word = words_of(local)[3]
        far_word = ipv6_addr_jhash(far, secrets.address6, form, steps)
        secret, name = secrets.ehash6, "__inet6_ehashfn"
    else:
        near_word, far_word = words_of(local)[-1], words_of(far)[0]
        secret, name = secrets.ehash, "__inet_ehashfn"
    inside = 0 if form.port_outside else local_port
    ports = inside << 16 | be16(far_port)
    initval = (secret + hash_mix) & WORD
    if steps is not None:
        steps.note("near address as a word", near_word)
        steps.note("far address as a word", far_word)
        steps.note(f"ports: {inside} << 16 | {far_port} in network order", ports)
        steps.note(f"{name}: jhash_3words, initval = secret + hash_mix", initval)
    hashed = jhash_3words(near_word, far_word, ports, initval, steps)
    if form.port_outside:
        hashed = (hashed + local_port) & WORD
        if steps is not None:
            steps.note(f"+ local port ({local_port})", hashed)
    return hashed


def reciprocal_scale(value: int, end: int) -> int:
    """reciprocal_scale: a hash to an index below `end`, as reuseport_select_sock_by_hash does it."""
    return value * end >> 32
