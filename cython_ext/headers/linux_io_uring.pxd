"""<linux/io_uring.h>: submission and completion rings shared with the kernel; its three system calls."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "linux/io_uring.h" nogil:
    enum:
        IORING_ASYNC_CANCEL_ANY
        IORING_CQE_BUFFER_SHIFT
        IORING_CQE_F_BUFFER
        IORING_CQE_F_MORE
        IORING_CQE_F_NOTIF
        IORING_ENTER_EXT_ARG
        IORING_ENTER_GETEVENTS
        IORING_FEAT_EXT_ARG
        IORING_FEAT_NODROP
        IORING_FEAT_SINGLE_MMAP
        IORING_OP_RECV
        IORING_OP_SEND
        IORING_OP_SEND_ZC
        IORING_RECV_MULTISHOT
        IORING_RECVSEND_FIXED_BUF
        IORING_REGISTER_BUFFERS
        IORING_REGISTER_ENABLE_RINGS
        IORING_REGISTER_FILES
        IORING_REGISTER_PBUF_RING
        IORING_REGISTER_SYNC_CANCEL
        IORING_SEND_ZC_REPORT_USAGE
        IORING_SETUP_CQSIZE
        IORING_SETUP_DEFER_TASKRUN
        IORING_SETUP_R_DISABLED
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_TASKRUN_FLAG
        IORING_SQ_CQ_OVERFLOW
        IORING_SQ_TASKRUN
        IOSQE_BUFFER_SELECT
        IOSQE_FIXED_FILE
    unsigned int IORING_NOTIF_USAGE_ZC_COPIED  # bit 31: no C int
    unsigned long long IORING_OFF_SQ_RING
    unsigned long long IORING_OFF_SQES

    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int32_t fd
        uint64_t addr
        uint32_t len
        uint32_t msg_flags
        uint64_t user_data
        uint16_t buf_index
        uint16_t buf_group

    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t flags
        uint32_t array

    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t cqes

    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off

    struct io_uring_buf:
        uint64_t addr
        uint32_t len
        uint16_t bid

    struct io_uring_buf_ring:
        uint16_t tail
        io_uring_buf *bufs

    struct io_uring_buf_reg:
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid

    struct io_uring_getevents_arg:
        uint64_t ts

    struct io_uring_sync_cancel_reg:
        int32_t fd
        uint32_t flags
        # a struct __kernel_timespec, whose members are these
        int64_t timeout_sec "timeout.tv_sec"
        int64_t timeout_nsec "timeout.tv_nsec"


# glibc has no functions for them
cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline int hwrx_uring_setup(unsigned entries, void *params)
    { return (int) syscall(__NR_io_uring_setup, entries, params); }
    static inline int hwrx_uring_enter(int fd, unsigned submit, unsigned least, unsigned flags, void *arg, size_t size)
    { return (int) syscall(__NR_io_uring_enter, fd, submit, least, flags, arg, size); }
    static inline int hwrx_uring_register(int fd, unsigned what, void *arg, unsigned count)
    { return (int) syscall(__NR_io_uring_register, fd, what, arg, count); }
    """
    int io_uring_setup "hwrx_uring_setup"(unsigned int entries, io_uring_params *params) noexcept nogil
    int io_uring_enter "hwrx_uring_enter"(
        int fd, unsigned int submit, unsigned int least, unsigned int flags, void *arg, size_t size
    ) noexcept nogil
    int io_uring_register "hwrx_uring_register"(int fd, unsigned int what, void *arg, unsigned int count) noexcept nogil
