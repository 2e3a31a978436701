# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""CRC-32 by PCLMULQDQ, with AVX or without, and by tables of eight bytes, and the invariant CRC on top of it.

Which way is taken is decided when the module is imported, by what the CPU says of itself. The constants of all are
computed from the polynomial, x^32 + x^26 + … + 1, written with its lowest power first as in Ethernet: 0xEDB88320.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.frames.link cimport Piece
from cython_ext.frames.packet cimport IPV4, UDP_HEADER

cdef enum:
    BTH = 12
    MASKED = 8 + 40 + UDP_HEADER + BTH     # with IPv6's header, the longer one

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define HWRX_CRC 0xEDB88320u

    /* [0] is the remainder of a byte, [k] that of a byte with k bytes of zeros behind it. */
    static uint32_t hwrx_crc_table[8][256];

    static inline uint32_t hwrx_crc_bytes(uint32_t crc, const unsigned char *at, size_t size)
    {
        while (size--)
            crc = crc >> 8 ^ hwrx_crc_table[0][(crc ^ *at++) & 0xFF];
        return crc;
    }

    static uint32_t hwrx_crc_slicing(uint32_t crc, const char *data, size_t size)
    {
        const unsigned char *at = (const unsigned char *)data;
        uint32_t low, high;
        while (size >= 8) {
            memcpy(&low, at, 4);
            memcpy(&high, at + 4, 4);
            low ^= crc;
            crc = hwrx_crc_table[7][low & 0xFF] ^ hwrx_crc_table[6][low >> 8 & 0xFF]
                ^ hwrx_crc_table[5][low >> 16 & 0xFF] ^ hwrx_crc_table[4][low >> 24]
                ^ hwrx_crc_table[3][high & 0xFF] ^ hwrx_crc_table[2][high >> 8 & 0xFF]
                ^ hwrx_crc_table[1][high >> 16 & 0xFF] ^ hwrx_crc_table[0][high >> 24];
            at += 8;
            size -= 8;
        }
        return hwrx_crc_bytes(crc, at, size);
    }

    /* x to the n modulo the polynomial, the lowest power in the highest bit. */
    static uint32_t hwrx_crc_power(unsigned n)
    {
        uint32_t value = 0x80000000u;
        while (n--)
            value = value >> 1 ^ (value & 1 ? HWRX_CRC : 0);
        return value;
    }

    #if defined(__x86_64__)
    #include <immintrin.h>
    #define HWRX_PCLMUL __attribute__((target("pclmul,sse4.1")))
    /* The same with instructions of three operands, which copy no register beforehand: some 4 a block instead of 7. */
    #define HWRX_AVX __attribute__((target("pclmul,avx")))
    /* goes into functions of either kind, and is compiled as they are */
    #define HWRX_EITHER HWRX_PCLMUL static inline __attribute__((always_inline))

    /* Factors by which 128 bits move past 512 and past 128 bits of message, and those of the reduction to 32 bits.
       A product of two values in this bit order stands one bit too low: the factors are doubled for that. */
    static uint64_t hwrx_past_512[2], hwrx_past_128[2], hwrx_past_64, hwrx_barrett[2];

    static void hwrx_pclmul_constants(void)
    {
        uint64_t left = 0, quotient = 0;
        int power;
        hwrx_past_512[0] = (uint64_t)hwrx_crc_power(512 + 32) << 1;
        hwrx_past_512[1] = (uint64_t)hwrx_crc_power(512 - 32) << 1;
        hwrx_past_128[0] = (uint64_t)hwrx_crc_power(128 + 32) << 1;
        hwrx_past_128[1] = (uint64_t)hwrx_crc_power(128 - 32) << 1;
        hwrx_past_64 = (uint64_t)hwrx_crc_power(64) << 1;
        hwrx_barrett[0] = (uint64_t)HWRX_CRC << 1 | 1;
        /* x^64 divided by the polynomial; 33 bits, again lowest power first */
        for (power = 64; power >= 0; power--) {
            left = left << 1 | (power == 64);
            if (left >> 32) {
                left ^= 0x104C11DB7ull;
                quotient |= 1ull << (32 - power);
            }
        }
        hwrx_barrett[1] = quotient;
    }

    HWRX_EITHER __m128i hwrx_load128(const char *at) { return _mm_loadu_si128((const __m128i *)at); }

    HWRX_EITHER __m128i hwrx_move(__m128i sum, __m128i factors, __m128i next)
    {
        return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(sum, factors, 0x00),
                                           _mm_clmulepi64_si128(sum, factors, 0x11)), next);
    }

    /* Fold whole blocks of 16 bytes into the sum. */
    HWRX_EITHER __m128i hwrx_fold_blocks(__m128i sum, const char *at, size_t size)
    {
        const __m128i one = _mm_loadu_si128((const __m128i *)hwrx_past_128);
        if (size >= 112) {
            /* four independent sums: a multiplication takes several cycles, and one can begin in each */
            const __m128i four = _mm_loadu_si128((const __m128i *)hwrx_past_512);
            __m128i b = hwrx_load128(at), c = hwrx_load128(at + 16), d = hwrx_load128(at + 32);
            at += 48;
            size -= 48;
            while (size >= 64) {
                sum = hwrx_move(sum, four, hwrx_load128(at));
                b = hwrx_move(b, four, hwrx_load128(at + 16));
                c = hwrx_move(c, four, hwrx_load128(at + 32));
                d = hwrx_move(d, four, hwrx_load128(at + 48));
                at += 64;
                size -= 64;
            }
            sum = hwrx_move(hwrx_move(hwrx_move(sum, one, b), one, c), one, d);
        }
        for (; size >= 64; at += 64, size -= 64) {
            sum = hwrx_move(hwrx_move(sum, one, hwrx_load128(at)), one, hwrx_load128(at + 16));
            sum = hwrx_move(hwrx_move(sum, one, hwrx_load128(at + 32)), one, hwrx_load128(at + 48));
        }
        for (; size >= 16; at += 16, size -= 16)
            sum = hwrx_move(sum, one, hwrx_load128(at));
        return sum;
    }

    /* 96 bits to 64, and by Barrett's method to 32. */
    HWRX_EITHER uint32_t hwrx_reduce_96(__m128i sum)
    {
        const __m128i half = _mm_cvtsi64_si128((long long)hwrx_past_64);
        const __m128i barrett = _mm_loadu_si128((const __m128i *)hwrx_barrett);
        const __m128i low = _mm_setr_epi32(-1, 0, 0, 0);
        __m128i rest;
        sum = _mm_xor_si128(_mm_srli_si128(sum, 4), _mm_clmulepi64_si128(_mm_and_si128(sum, low), half, 0x00));
        rest = _mm_clmulepi64_si128(_mm_and_si128(sum, low), barrett, 0x10);
        rest = _mm_clmulepi64_si128(_mm_and_si128(rest, low), barrett, 0x00);
        return (uint32_t)_mm_extract_epi32(_mm_xor_si128(sum, rest), 1);
    }

    HWRX_EITHER uint32_t hwrx_reduce(__m128i sum)
    {
        const __m128i one = _mm_loadu_si128((const __m128i *)hwrx_past_128);
        return hwrx_reduce_96(_mm_xor_si128(_mm_srli_si128(sum, 8), _mm_clmulepi64_si128(sum, one, 0x10)));
    }

    /* `head`, a whole number of blocks and not empty, then `at`. */
    HWRX_EITHER uint32_t hwrx_two(uint32_t crc, const char *head, size_t first, const char *at, size_t size)
    {
        size_t whole = size & ~(size_t)15;
        __m128i sum = _mm_xor_si128(hwrx_load128(head), _mm_cvtsi32_si128((int)crc));
        sum = hwrx_fold_blocks(sum, head + 16, first - 16);
        return hwrx_crc_slicing(hwrx_reduce(hwrx_fold_blocks(sum, at, whole)), at + whole, size - whole);
    }

    /* The sum over 8 bytes of ones and the first 24 of IPv4's headers, with ones in the place of what a hop may change:
       type of service, time to live, both checksums. Two blocks. */
    HWRX_EITHER __m128i hwrx_head_sum(const char *ip)
    {
        const __m128i one = _mm_loadu_si128((const __m128i *)hwrx_past_128);
        /* the register's ones at the beginning cancel the first four bytes of ones */
        __m128i sum = _mm_unpacklo_epi64(_mm_cvtsi64_si128((long long)0xFFFFFFFF00000000ull),
                                         _mm_or_si128(_mm_loadl_epi64((const __m128i *)ip), _mm_cvtsi32_si128(0xFF00)));
        return hwrx_move(sum, one, _mm_or_si128(hwrx_load128(ip + 8), _mm_cvtsi64_si128(0xFFFF00FFll)));
    }

    /* And over the third, which ends with the BTH: resv8a counts as ones, too. */
    HWRX_EITHER __m128i hwrx_bth_sum(__m128i sum, const char *ip)
    {
        const __m128i one = _mm_loadu_si128((const __m128i *)hwrx_past_128);
        return hwrx_move(sum, one, _mm_or_si128(hwrx_load128(ip + 24), _mm_set_epi64x(0xFF, 0xFFFF0000ll)));
    }

    HWRX_EITHER uint32_t hwrx_icrc_behind(__m128i sum, const char *at, size_t size)
    {
        size_t whole = size & ~(size_t)15;
        uint32_t crc = hwrx_reduce(hwrx_fold_blocks(sum, at, whole));
        return ~(size == whole ? crc : hwrx_crc_slicing(crc, at + whole, size - whole));
    }

    HWRX_EITHER uint32_t hwrx_icrc(const char *ip, const char *at, size_t size)
    {
        return hwrx_icrc_behind(hwrx_bth_sum(hwrx_head_sum(ip), ip), at, size);
    }

    /* Of packets with the same headers up to the PSN, summed beforehand. That is the last word of the third block. */
    HWRX_EITHER uint32_t hwrx_icrc_of_sum(const void *sum, uint32_t psn, const char *at, size_t size)
    {
        __m128i word = _mm_slli_si128(_mm_cvtsi32_si128((int)psn), 12);
        return hwrx_icrc_behind(_mm_xor_si128(_mm_loadu_si128((const __m128i *)sum), word), at, size);
    }
    HWRX_EITHER void hwrx_icrc_run(const void *sum, hwrx_piece *pieces, size_t count, size_t size)
    {
        for (; count--; pieces++)
            pieces->end = hwrx_icrc_of_sum(sum, pieces->psn, pieces->payload, size);
    }

    HWRX_PCLMUL static uint32_t hwrx_crc_pclmul_two(uint32_t crc, const char *head, size_t first, const char *at,
                                                    size_t size) { return hwrx_two(crc, head, first, at, size); }
    HWRX_AVX static uint32_t hwrx_crc_avx_two(uint32_t crc, const char *head, size_t first, const char *at,
                                              size_t size) { return hwrx_two(crc, head, first, at, size); }
    HWRX_PCLMUL static uint32_t hwrx_icrc_pclmul(const char *ip, const char *at, size_t size)
    {
        return hwrx_icrc(ip, at, size);
    }
    HWRX_AVX static uint32_t hwrx_icrc_avx(const char *ip, const char *at, size_t size)
    {
        return hwrx_icrc(ip, at, size);
    }
    HWRX_PCLMUL static uint32_t hwrx_icrc_one_pclmul(const void *sum, uint32_t psn, const char *at, size_t size)
    {
        return hwrx_icrc_of_sum(sum, psn, at, size);
    }
    HWRX_AVX static uint32_t hwrx_icrc_one_avx(const void *sum, uint32_t psn, const char *at, size_t size)
    {
        return hwrx_icrc_of_sum(sum, psn, at, size);
    }
    /* 64 bits, with the 32 zeros behind them that a remainder is taken with: the same as 96 that begin with zeros */
    HWRX_PCLMUL static uint32_t hwrx_crc_word_pclmul(uint32_t crc, uint64_t bytes)
    {
        return hwrx_reduce_96(_mm_cvtsi64_si128((long long)(bytes ^ crc)));
    }
    HWRX_PCLMUL static void hwrx_icrc_run_pclmul(const void *sum, hwrx_piece *pieces, size_t count, size_t size)
    {
        hwrx_icrc_run(sum, pieces, count, size);
    }
    HWRX_AVX static void hwrx_icrc_run_avx(const void *sum, hwrx_piece *pieces, size_t count, size_t size)
    {
        hwrx_icrc_run(sum, pieces, count, size);
    }
    HWRX_PCLMUL static void hwrx_icrc_sum(const char *ip, void *out)
    {
        _mm_storeu_si128((__m128i *)out, hwrx_bth_sum(hwrx_head_sum(ip), ip));
    }

    static uint32_t hwrx_crc_pclmul(uint32_t crc, const char *at, size_t size)
    {
        size_t whole = size & ~(size_t)15;
        uint64_t bytes;
        if (size == 8) {
            memcpy(&bytes, at, 8);
            return hwrx_crc_word_pclmul(crc, bytes);
        }
        if (whole < 32) /* the reduction costs more than two steps by table */
            return hwrx_crc_slicing(crc, at, size);
        return hwrx_crc_pclmul_two(crc, at, whole, at + whole, size - whole);
    }
    static uint32_t hwrx_crc_avx(uint32_t crc, const char *at, size_t size)
    {
        size_t whole = size & ~(size_t)15;
        if (whole < 32)
            return hwrx_crc_pclmul(crc, at, size);
        return hwrx_crc_avx_two(crc, at, whole, at + whole, size - whole);
    }

    static int hwrx_crc_has_pclmul(void)
    {
        return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    }
    /* the system must save the wider registers, too, which this call asks */
    static int hwrx_crc_has_avx(void) { return hwrx_crc_has_pclmul() && __builtin_cpu_supports("avx"); }
    #else
    static void hwrx_pclmul_constants(void) { }
    static int hwrx_crc_has_pclmul(void) { return 0; }
    static int hwrx_crc_has_avx(void) { return 0; }
    #define hwrx_crc_pclmul hwrx_crc_slicing
    #define hwrx_crc_avx hwrx_crc_slicing
    static uint32_t hwrx_icrc_pclmul(const char *ip, const char *at, size_t size) { return 0; }
    static uint32_t hwrx_icrc_one_pclmul(const void *sum, uint32_t psn, const char *at, size_t size) { return 0; }
    static void hwrx_icrc_run_pclmul(const void *sum, hwrx_piece *pieces, size_t count, size_t size) { }
    static void hwrx_icrc_sum(const char *ip, void *out) { }
    static uint32_t hwrx_crc_word_pclmul(uint32_t crc, uint64_t bytes) { return 0; }
    #define hwrx_icrc_avx hwrx_icrc_pclmul
    #define hwrx_icrc_one_avx hwrx_icrc_one_pclmul
    #define hwrx_icrc_run_avx hwrx_icrc_run_pclmul
    #endif

    /* The same by table; of the sum only the register is used. */
    static uint32_t hwrx_crc_word(uint32_t crc, uint64_t bytes)
    {
        return hwrx_crc_slicing(crc, (const char *)&bytes, sizeof bytes);
    }
    static uint32_t hwrx_icrc_one(const void *sum, uint32_t psn, const char *at, size_t size)
    {
        uint32_t crc;
        memcpy(&crc, sum, sizeof crc);
        return ~hwrx_crc_slicing(hwrx_crc_slicing(crc, (const char *)&psn, sizeof psn), at, size);
    }
    static void hwrx_icrc_run_slicing(const void *sum, hwrx_piece *pieces, size_t count, size_t size)
    {
        for (; count--; pieces++)
            pieces->end = hwrx_icrc_one(sum, pieces->psn, pieces->payload, size);
    }

    static void hwrx_crc_tables(void)
    {
        unsigned byte, k;
        uint32_t value;
        for (byte = 0; byte < 256; byte++) {
            value = byte;
            for (k = 0; k < 8; k++)
                value = value >> 1 ^ (value & 1 ? HWRX_CRC : 0);
            hwrx_crc_table[0][byte] = value;
        }
        for (byte = 0; byte < 256; byte++)
            for (k = 1; k < 8; k++)
                hwrx_crc_table[k][byte] = hwrx_crc_table[k - 1][byte] >> 8
                    ^ hwrx_crc_table[0][hwrx_crc_table[k - 1][byte] & 0xFF];
        hwrx_pclmul_constants();
    }
    """
    void make_tables "hwrx_crc_tables"() noexcept nogil
    bint has_pclmul "hwrx_crc_has_pclmul"() noexcept nogil
    bint has_avx "hwrx_crc_has_avx"() noexcept nogil
    uint32_t crc_slicing "hwrx_crc_slicing"(uint32_t crc, const char *at, size_t size) noexcept nogil
    uint32_t crc_pclmul "hwrx_crc_pclmul"(uint32_t crc, const char *at, size_t size) noexcept nogil
    uint32_t crc_avx "hwrx_crc_avx"(uint32_t crc, const char *at, size_t size) noexcept nogil
    uint32_t icrc_pclmul "hwrx_icrc_pclmul"(const char *ip, const char *at, size_t size) noexcept nogil
    uint32_t icrc_avx "hwrx_icrc_avx"(const char *ip, const char *at, size_t size) noexcept nogil
    uint32_t icrc_one "hwrx_icrc_one"(const void *sum, uint32_t psn, const char *at, size_t size) noexcept nogil
    uint32_t icrc_one_pclmul "hwrx_icrc_one_pclmul"(const void *sum, uint32_t psn, const char *at,
                                                    size_t size) noexcept nogil
    uint32_t icrc_one_avx "hwrx_icrc_one_avx"(const void *sum, uint32_t psn, const char *at, size_t size) noexcept nogil
    void icrc_run "hwrx_icrc_run_slicing"(const void *sum, Piece *pieces, size_t count, size_t size) noexcept nogil
    void icrc_run_pclmul "hwrx_icrc_run_pclmul"(const void *sum, Piece *pieces, size_t count,
                                                size_t size) noexcept nogil
    void icrc_run_avx "hwrx_icrc_run_avx"(const void *sum, Piece *pieces, size_t count, size_t size) noexcept nogil
    void icrc_sum_pclmul "hwrx_icrc_sum"(const char *ip, void *out) noexcept nogil
    uint32_t crc_word "hwrx_crc_word"(uint32_t crc, uint64_t bytes) noexcept nogil
    uint32_t crc_word_pclmul "hwrx_crc_word_pclmul"(uint32_t crc, uint64_t bytes) noexcept nogil

make_tables()

cdef bint by_pclmul = has_pclmul()
cdef bint by_avx = has_avx()

WAYS = ("avx",) * by_avx + ("pclmul",) * by_pclmul + ("slicing",)


cdef Icrc quick_icrc(str way=WAYS[0]) except *:
    if way == "avx":
        return Icrc(icrc_sum_pclmul, icrc_one_avx, icrc_run_avx, crc_word_pclmul)
    if way == "pclmul":
        return Icrc(icrc_sum_pclmul, icrc_one_pclmul, icrc_run_pclmul, crc_word_pclmul)
    return Icrc(icrc_sum, icrc_one, icrc_run, crc_word)


# --- the hot part --------------------------------------------------------------------------------------------------

cdef uint32_t crc_update(uint32_t register, const char *at, size_t size) noexcept nogil:
    if by_avx:
        return crc_avx(register, at, size)
    return crc_pclmul(register, at, size) if by_pclmul else crc_slicing(register, at, size)


cdef inline uint32_t mask(char *out, const char *ip, uint32_t network) noexcept nogil:
    """What is covered up to the BTH, with ones in the place of what a hop may change: how many bytes."""
    cdef uint32_t size = network + UDP_HEADER + BTH
    cdef char *copy = out + 8
    memset(out, 0xFF, 8)
    memcpy(copy, ip, size)
    if network == IPV4:
        copy[1] = copy[8] = copy[10] = copy[11] = <char> 0xFF
    else:
        # the version, four bits, is all of the first word that stays
        copy[0] |= 0x0F
        copy[1] = copy[2] = copy[3] = copy[7] = <char> 0xFF
    copy[network + 6] = copy[network + 7] = <char> 0xFF
    copy[network + UDP_HEADER + 4] = <char> 0xFF
    return 8 + size


cdef uint32_t icrc_begin(const char *ip, uint32_t network) noexcept nogil:
    cdef char[MASKED] head
    cdef uint32_t size = mask(head, ip, network)
    return crc_update(0xFFFFFFFF, head, size)


cdef uint32_t icrc_before_psn(const char *ip, uint32_t network) noexcept nogil:
    cdef char[MASKED] head
    cdef uint32_t size = mask(head, ip, network)
    return crc_update(0xFFFFFFFF, head, size - 4)


cdef void icrc_sum(const char *ip, void *out) noexcept nogil:
    cdef uint32_t register = icrc_before_psn(ip, IPV4)
    memcpy(out, &register, 4)


cdef uint32_t icrc_of(const char *ip, uint32_t network, const char *at, size_t size) noexcept nogil:
    cdef char[MASKED] head
    cdef uint32_t first
    if by_pclmul and network == IPV4:
        return icrc_avx(ip, at, size) if by_avx else icrc_pclmul(ip, at, size)
    first = mask(head, ip, network)
    return ~crc_update(crc_update(0xFFFFFFFF, head, first), at, size)


# --- for Python ----------------------------------------------------------------------------------------------------

def crc32(const unsigned char[::1] data not None, *, uint32_t start=0, way=None) -> int:
    """CRC-32 as `zlib.crc32` has it.

    :param start: the CRC of what stands before; 0: nothing does
    :param way: one of WAYS; None: the one that this CPU is given
    :raises ValueError: if the CPU has no such way
    """
    cdef const char *at = <const char *> &data[0] if data.shape[0] else NULL
    cdef size_t size = <size_t> data.shape[0]
    if way is None:
        return <uint32_t> ~crc_update(~start, at, size)
    if way not in WAYS:
        raise ValueError(f"this CPU computes a CRC by {' or '.join(WAYS)}, not by {way}")
    if way == "avx":
        return <uint32_t> ~crc_avx(~start, at, size)
    return <uint32_t> ~(crc_pclmul(~start, at, size) if way == "pclmul" else crc_slicing(~start, at, size))


def icrc_ipv4(const unsigned char[::1] packet not None, *, way, bint run=False) -> int:
    """The ICRC of a packet over IPv4, which begins with the IP header and ends with its padding.

    :param way: one of WAYS
    :param run: as of several packets behind one another, not of one alone
    :raises ValueError: if it has no BTH, or the CPU has no such way
    """
    cdef char[IPV4 + UDP_HEADER + BTH] head
    cdef uint64_t[2] sum
    cdef uint32_t psn
    cdef Icrc quick
    cdef Piece piece
    cdef size_t size
    if packet.shape[0] < IPV4 + UDP_HEADER + BTH or way not in WAYS:
        raise ValueError(f"no packet over IPv4 whose ICRC is computed by {way}")
    quick = quick_icrc(way)
    memcpy(head, &packet[0], sizeof(head))
    memcpy(&psn, head + sizeof(head) - 4, 4)
    memset(head + sizeof(head) - 4, 0, 4)
    quick.sum(head, sum)
    piece.payload, piece.psn, size = <const char *> &packet[0] + sizeof(head), psn, packet.shape[0] - sizeof(head)
    if run:
        quick.run(sum, &piece, 1, size)
        return piece.end
    return quick.one(sum, psn, piece.payload, size)
