"""Marks for whoever watches the processor: where a timed region begins, and where a message may have come.

A mark is a NOP with a displacement that nothing else has, so that an emulator's plugin finds it in the code
(hwrx/anatomy/plugin.c). It costs one instruction, the same on every path. On other processors it is nothing.
"""

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define HWRX_MARK(number) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x48575200 | (number)))
    #else
    #define HWRX_MARK(number) ((void)0)
    #endif
    #define hwrx_mark_send() HWRX_MARK(1)
    #define hwrx_mark_receive() HWRX_MARK(2)
    #define hwrx_mark_end() HWRX_MARK(3)
    """
    # the next reading of the clock begins a message's time
    void mark_send "hwrx_mark_send" () noexcept nogil
    # the next reading of the clock ends it, if it is one that came
    void mark_receive "hwrx_mark_receive" () noexcept nogil
    # no message is under way any more
    void mark_end "hwrx_mark_end" () noexcept nogil
