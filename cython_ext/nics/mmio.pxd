"""Registers in memory: one read and one write, with the barriers that a device needs.

Descriptors are written before the tail register that announces them: `mmio_write` orders earlier stores to memory
before its own. What a device reports in memory is read with `dma_read64`, which orders later loads after it. On x86
stores, and loads, keep their order, so both cost nothing but the compiler's restraint.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #include <stdint.h>

    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "registers and descriptors are little-endian, and nothing here swaps bytes"
    #endif

    #if defined(__x86_64__) || defined(__i386__)
    #define HWRX_STORES_BEFORE_DEVICE() __asm__ volatile("" ::: "memory")
    #define HWRX_LOADS_AFTER_DEVICE() __asm__ volatile("" ::: "memory")
    #elif defined(__aarch64__)
    #define HWRX_STORES_BEFORE_DEVICE() __asm__ volatile("dmb oshst" ::: "memory")
    #define HWRX_LOADS_AFTER_DEVICE() __asm__ volatile("dmb oshld" ::: "memory")
    #else
    #define HWRX_STORES_BEFORE_DEVICE() __sync_synchronize()
    #define HWRX_LOADS_AFTER_DEVICE() __sync_synchronize()
    #endif

    static inline uint32_t hwrx_mmio_read(const char *bar, uint32_t offset)
    {
        uint32_t value = *(const volatile uint32_t *)(bar + offset);
        HWRX_LOADS_AFTER_DEVICE();
        return value;
    }

    static inline void hwrx_mmio_write(char *bar, uint32_t offset, uint32_t value)
    {
        HWRX_STORES_BEFORE_DEVICE();
        *(volatile uint32_t *)(bar + offset) = value;
    }

    static inline uint64_t hwrx_dma_read64(const uint64_t *word)
    {
        uint64_t value = *(const volatile uint64_t *)word;
        HWRX_LOADS_AFTER_DEVICE();
        return value;
    }
    """
    uint32_t mmio_read "hwrx_mmio_read"(const char *bar, uint32_t offset) noexcept nogil
    void mmio_write "hwrx_mmio_write"(char *bar, uint32_t offset, uint32_t value) noexcept nogil
    uint64_t dma_read64 "hwrx_dma_read64"(const uint64_t *word) noexcept nogil


cdef class Bar:
    cdef char *base
    cdef readonly size_t size
    cdef Py_buffer view
    cdef bint held

    cdef int check(self, size_t offset) except -1
