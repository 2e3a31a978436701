"""Marks for whoever watches the processor: where a timed region begins, and where a message may have come.

A mark is a NOP with a displacement that nothing else has, so that an emulator's plugin finds it in the code
(hwrx/anatomy/plugin.c). It costs one instruction, the same on every path. On other processors it is nothing. Those of a
message that is filled or verified lie outside of every timed region.
"""

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define HWRX_MARK(number, ...) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x48575200 | (number)) : __VA_ARGS__)
    #else
    #define HWRX_MARK(number, ...) ((void)0)
    #endif
    #define hwrx_mark_send() HWRX_MARK(1)
    #define hwrx_mark_receive() HWRX_MARK(2)
    #define hwrx_mark_end() HWRX_MARK(3)
    /* the first byte is read in the next instruction, so that whoever watches memory learns where the message is */
    #if defined(__x86_64__)
    static inline __attribute__((always_inline)) void hwrx_mark_at(const int number, const char *at)
    {
        unsigned char there;
        __asm__ volatile("nopl %c1(%%rax); movb (%2), %0" : "=q"(there) : "i"(0x48575200 | number), "r"(at)
                         : "memory");
    }
    #else
    #define hwrx_mark_at(number, at) ((void)(at))
    #endif
    #define hwrx_mark_fill(at) hwrx_mark_at(4, at)
    #define hwrx_mark_filled() HWRX_MARK(5, "memory")
    #define hwrx_mark_verify(at) hwrx_mark_at(6, at)
    #define hwrx_mark_verified() HWRX_MARK(7, "memory")
    #define hwrx_mark_source(at) hwrx_mark_at(8, at)
    """
    # the next reading of the clock begins a message's time
    void mark_send "hwrx_mark_send" () noexcept nogil
    # the next reading of the clock ends it, if it is one that came
    void mark_receive "hwrx_mark_receive" () noexcept nogil
    # no message is under way any more
    void mark_end "hwrx_mark_end" () noexcept nogil
    # what is stored from there to `mark_filled` is a message, which begins there and is about to be sent
    void mark_fill "hwrx_mark_fill" (char *message) noexcept nogil
    # the same of one that the other end will fetch
    void mark_source "hwrx_mark_source" (char *message) noexcept nogil
    void mark_filled "hwrx_mark_filled" () noexcept nogil
    # a message that came is read between the two, to its last byte
    void mark_verify "hwrx_mark_verify" (const char *message) noexcept nogil
    void mark_verified "hwrx_mark_verified" () noexcept nogil
