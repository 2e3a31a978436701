"""What the 82574's two descriptor rings have in common: descriptors, registers, and the memory of a ring.

Section numbers are those of the Intel 82574 GbE Controller Family Datasheet (317694). Descriptors are the legacy ones.
Who owns which part of a ring stands in e1000e_ring.pxd.
"""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.nics.dma cimport DmaRegion
from cython_ext.nics.mmio cimport Bar


cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>

    /* Legacy receive descriptor, 7.1.3. The NIC fills in the second word when it has written the frame. */
    typedef struct {
        uint64_t address;
        uint64_t report;   /* length 15:0, packet checksum 31:16, status 39:32, errors 47:40, VLAN tag 63:48 */
    } hwrx_rx_descriptor;

    /* Legacy transmit descriptor, 7.2.10.1. */
    typedef struct {
        uint64_t address;
        uint64_t command;  /* length 15:0, CSO 23:16, CMD 31:24, STA 35:32, CSS 47:40, VLAN 63:48 */
    } hwrx_tx_descriptor;

    _Static_assert(sizeof(hwrx_rx_descriptor) == 16, "a receive descriptor has 16 bytes");
    _Static_assert(offsetof(hwrx_rx_descriptor, report) == 8, "length and status are its second word");
    _Static_assert(sizeof(hwrx_tx_descriptor) == 16, "a transmit descriptor has 16 bytes");
    _Static_assert(offsetof(hwrx_tx_descriptor, command) == 8, "length and command are its second word");
    """
    ctypedef struct RxDescriptor "hwrx_rx_descriptor":
        uint64_t address
        uint64_t report
    ctypedef struct TxDescriptor "hwrx_tx_descriptor":
        uint64_t address
        uint64_t command

cdef enum:
    # receive status, 7.1.3.3, and errors, 7.1.3.4, as they stand in `report`
    RXD_STATUS_SHIFT = 32   # of `report`
    FRAME_ERRORS_SHIFT = 8  # of a Frame's flags, which are the upper half of `report`
    RXD_STAT_DD = 0x01      # the NIC is done with the descriptor
    RXD_STAT_EOP = 0x02     # the frame ends here
    RXD_STAT_IXSM = 0x04    # the NIC looked at no checksum
    RXD_STAT_L4CS = 0x20    # it looked at the TCP or UDP checksum
    RXD_STAT_IPCS = 0x40    # and at the IPv4 header's
    RXD_ERR_CE = 0x01       # CRC or alignment
    RXD_ERR_SE = 0x02       # symbol
    RXD_ERR_SEQ = 0x04      # sequence
    RXD_ERR_CXE = 0x10      # carrier extension
    RXD_ERR_L4E = 0x20      # TCP or UDP checksum
    RXD_ERR_IPE = 0x40      # IPv4 header checksum
    RXD_ERR_RXE = 0x80      # receive data
    RXD_ERR_FRAME = 0x97    # those that say that the frame itself is damaged

    # transmit command, 7.2.10.1.4, as it stands in `command`
    TXD_CMD_SHIFT = 24
    TXD_CMD_EOP = 0x01
    TXD_CMD_IFCS = 0x02     # the NIC appends the CRC
    TXD_CMD_RS = 0x08       # and reports DD
    TXD_STA_SHIFT = 32
    TXD_STA_DD = 0x01

    # the registers that the data path touches: tails, 10.2.5.9 and 10.2.6.8, and interrupts, 10.2.4
    RDT = 0x02818
    TDT = 0x03818
    ICR = 0x000C0
    IMS = 0x000D0
    IMC = 0x000D8

    SHORTEST = 14           # an Ethernet header: what is shorter is a runt


cdef class Ring:
    cdef readonly Bar bar
    cdef readonly DmaRegion descriptors
    cdef readonly DmaRegion buffers
    cdef readonly uint32_t count    # descriptors
    cdef readonly uint32_t stride   # bytes of a buffer
    cdef readonly bint closed
    cdef uint64_t *iova

    cdef int check(self) except -1
