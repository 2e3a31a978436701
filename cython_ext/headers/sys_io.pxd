"""<sys/io.h>: x86 ports from user space."""


cdef extern from "sys/io.h" nogil:
    int ioperm(unsigned long first, unsigned long count, int on)
    unsigned char inb(unsigned short port)
    void outb(unsigned char value, unsigned short port)
    # `count` units of 1, 2 or 4 bytes, one port access each (rep ins, rep outs)
    void insb(unsigned short port, void *to, unsigned long count)
    void insw(unsigned short port, void *to, unsigned long count)
    void insl(unsigned short port, void *to, unsigned long count)
    void outsb(unsigned short port, const void *source, unsigned long count)
    void outsw(unsigned short port, const void *source, unsigned long count)
    void outsl(unsigned short port, const void *source, unsigned long count)
