"""The registers of the 82574L, by Intel's names, and what their bits say.

Offsets are bytes into BAR 0; all registers are 32 bits wide. Section numbers are those of the Intel 82574 GbE
Controller Family Datasheet (317694): 10.2.2 general, 10.2.4 interrupts, 10.2.5 receive, 10.2.6 transmit, 10.2.7
statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- PCI configuration space ---------------------------------------------------------------------------------------
PCI_COMMAND = 0x04
PCI_COMMAND_MEMORY = 1 << 1
PCI_COMMAND_MASTER = 1 << 2
PCI_COMMAND_INTX_DISABLE = 1 << 10

# --- general, 10.2.2 -----------------------------------------------------------------------------------------------
CTRL = 0x00000
CTRL_FD = 1 << 0
CTRL_GIO_MASTER_DISABLE = 1 << 2
CTRL_ASDE = 1 << 5
CTRL_SLU = 1 << 6
CTRL_ILOS = 1 << 7
CTRL_FRCSPD = 1 << 11
CTRL_FRCDPLX = 1 << 12
CTRL_RST = 1 << 26
CTRL_RFCE = 1 << 27
CTRL_TFCE = 1 << 28
CTRL_VME = 1 << 30
CTRL_PHY_RST = 1 << 31

STATUS = 0x00008
STATUS_FD = 1 << 0
STATUS_LU = 1 << 1
STATUS_TXOFF = 1 << 4
STATUS_SPEED = 3 << 6
STATUS_GIO_MASTER_ENABLE = 1 << 19

CTRL_EXT = 0x00018
CTRL_EXT_EIAME = 1 << 24  # what fires is masked by itself (EIAC)
CTRL_EXT_PBA_SUPPORT = 1 << 31  # MSI-X

MDIC = 0x00020  # 10.2.2.7: the PHY's registers
MDIC_PHY = 1 << 21
MDIC_WRITE = 1 << 26
MDIC_READ = 2 << 26
MDIC_READY = 1 << 28
MDIC_ERROR = 1 << 30
PHY_CONTROL = 0  # IEEE 802.3, 22.2.4.1
PHY_CONTROL_RESTART = 1 << 9
PHY_CONTROL_AUTONEGOTIATION = 1 << 12

# --- interrupts, 10.2.4 --------------------------------------------------------------------------------------------
ICR = 0x000C0
ITR = 0x000C4  # throttling, in steps of 256 ns; MSI-X has EITR
ICS = 0x000C8
IMS = 0x000D0
IMC = 0x000D8
EIAC = 0x000DC
IVAR = 0x000E4
EITR0 = 0x000E8

INT_TXDW = 1 << 0
INT_TXQE = 1 << 1
INT_LSC = 1 << 2
INT_RXDMT0 = 1 << 4
INT_RXO = 1 << 6
INT_RXT0 = 1 << 7
INT_RXQ0 = 1 << 20
INT_OTHER = 1 << 24
INT_ASSERTED = 1 << 31
INT_ALL = 0xFFFFFFFF

IVAR_RXQ0_VECTOR0 = 0x8 << 0
IVAR_OTHER_VECTOR0 = 0x8 << 16

# --- receive, 10.2.5 -----------------------------------------------------------------------------------------------
RCTL = 0x00100
RCTL_EN = 1 << 1
RCTL_SBP = 1 << 2
RCTL_UPE = 1 << 3
RCTL_MPE = 1 << 4
RCTL_LPE = 1 << 5
RCTL_BAM = 1 << 15
RCTL_BSIZE_SHIFT = 16
RCTL_BSEX = 1 << 25
RCTL_SECRC = 1 << 26
# buffer size in bytes -> BSIZE and BSEX
RCTL_BUFFER = {
    2048: 0 << RCTL_BSIZE_SHIFT,
    1024: 1 << RCTL_BSIZE_SHIFT,
    512: 2 << RCTL_BSIZE_SHIFT,
    256: 3 << RCTL_BSIZE_SHIFT,
    16384: 1 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
    8192: 2 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
    4096: 3 << RCTL_BSIZE_SHIFT | RCTL_BSEX,
}

RDBAL = 0x02800
RDBAH = 0x02804
RDLEN = 0x02808
RDH = 0x02810
RDT = 0x02818
RDTR = 0x02820
RXDCTL = 0x02828
RXDCTL_WTHRESH_SHIFT = 16
RXDCTL_GRAN = 1 << 24
RADV = 0x0282C
RXCSUM = 0x05000
RXCSUM_IPOFLD = 1 << 8
RXCSUM_TUOFLD = 1 << 9
RFCTL = 0x05008
MTA = 0x05200
MTA_ENTRIES = 128
RAL0 = 0x05400
RAH0 = 0x05404
RAH_AV = 1 << 31
RECEIVE_ADDRESSES = 16
MRQC = 0x05818

# --- transmit, 10.2.6 ----------------------------------------------------------------------------------------------
TCTL = 0x00400
TCTL_EN = 1 << 1
TCTL_PSP = 1 << 3
TCTL_CT_SHIFT = 4
TCTL_COLD_SHIFT = 12
TIPG = 0x00410
TDBAL = 0x03800
TDBAH = 0x03804
TDLEN = 0x03808
TDH = 0x03810
TDT = 0x03818
TIDV = 0x03820
TXDCTL = 0x03828
TXDCTL_WTHRESH_SHIFT = 16
TXDCTL_COUNT_DESC = 1 << 22
TXDCTL_GRAN = 1 << 24
TADV = 0x0382C

# --- statistics, 10.2.7: each is cleared by reading ----------------------------------------------------------------
# name -> (offset, what it counts); a 64-bit counter is read low half first, and the high half's reading clears both
STATISTICS: dict[str, tuple[int, str]] = {
    "CRCERRS": (0x04000, "frames with a bad CRC"),
    "ALGNERRC": (0x04004, "frames with alignment errors"),
    "RXERRC": (0x0400C, "frames with receive errors"),
    "MPC": (0x04010, "frames missed: no room in the NIC's own memory"),
    "RLEC": (0x04040, "frames whose length is wrong"),
    "GPRC": (0x04074, "good frames received"),
    "BPRC": (0x04078, "broadcast frames received"),
    "MPRC": (0x0407C, "multicast frames received"),
    "GPTC": (0x04080, "good frames sent"),
    "GORC": (0x04088, "bytes of good frames received"),
    "GOTC": (0x04090, "bytes of good frames sent"),
    "RNBC": (0x040A0, "frames that found no receive descriptor free"),
    "RUC": (0x040A4, "runts with a good CRC"),
    "RFC": (0x040A8, "runts with a bad CRC"),
    "ROC": (0x040AC, "frames that are too long, with a good CRC"),
    "RJC": (0x040B0, "frames that are too long, with a bad CRC"),
    "TPR": (0x040D0, "frames received, good or bad"),
    "TPT": (0x040D4, "frames sent"),
}
WIDE_STATISTICS = frozenset({"GORC", "GOTC"})


@dataclass(frozen=True)
class Field:
    """Bits `low` and up of a register, `width` of them."""

    name: str
    low: int
    width: int = 1


# What `hwrx nic dump` shows, in the order of the datasheet: name, offset, fields.
DUMPED: tuple[tuple[str, int, tuple[Field, ...]], ...] = (
    (
        "CTRL",
        CTRL,
        (
            Field("FD", 0),
            Field("GIO_MASTER_DISABLE", 2),
            Field("ASDE", 5),
            Field("SLU", 6),
            Field("ILOS", 7),
            Field("SPEED", 8, 2),
            Field("FRCSPD", 11),
            Field("FRCDPLX", 12),
            Field("RST", 26),
            Field("RFCE", 27),
            Field("TFCE", 28),
            Field("VME", 30),
            Field("PHY_RST", 31),
        ),
    ),
    (
        "STATUS",
        STATUS,
        (
            Field("FD", 0),
            Field("LU", 1),
            Field("TXOFF", 4),
            Field("SPEED", 6, 2),
            Field("GIO_MASTER_ENABLE", 19),
        ),
    ),
    ("CTRL_EXT", CTRL_EXT, (Field("EIAME", 24), Field("PBA_SUPPORT", 31))),
    ("ITR", ITR, (Field("INTERVAL", 0, 16),)),
    (
        "IMS",
        IMS,
        (
            Field("TXDW", 0),
            Field("TXQE", 1),
            Field("LSC", 2),
            Field("RXDMT0", 4),
            Field("RXO", 6),
            Field("RXT0", 7),
            Field("RXQ0", 20),
            Field("OTHER", 24),
        ),
    ),
    ("EIAC", EIAC, (Field("RXQ0", 20), Field("OTHER", 24))),
    ("IVAR", IVAR, (Field("RXQ0", 0, 4), Field("RXQ1", 4, 4), Field("TXQ0", 8, 4), Field("OTHER", 16, 4))),
    (
        "RCTL",
        RCTL,
        (
            Field("EN", 1),
            Field("SBP", 2),
            Field("UPE", 3),
            Field("MPE", 4),
            Field("LPE", 5),
            Field("BAM", 15),
            Field("BSIZE", 16, 2),
            Field("BSEX", 25),
            Field("SECRC", 26),
        ),
    ),
    ("RDBAL", RDBAL, ()),
    ("RDBAH", RDBAH, ()),
    ("RDLEN", RDLEN, ()),
    ("RDH", RDH, ()),
    ("RDT", RDT, ()),
    ("RDTR", RDTR, ()),
    ("RXDCTL", RXDCTL, (Field("PTHRESH", 0, 6), Field("HTHRESH", 8, 6), Field("WTHRESH", 16, 6), Field("GRAN", 24))),
    ("RADV", RADV, ()),
    ("RXCSUM", RXCSUM, (Field("PCSS", 0, 8), Field("IPOFLD", 8), Field("TUOFLD", 9), Field("PCSD", 13))),
    ("RFCTL", RFCTL, (Field("EXSTEN", 15),)),
    ("RAL0", RAL0, ()),
    ("RAH0", RAH0, (Field("RAH", 0, 16), Field("AV", 31))),
    ("TCTL", TCTL, (Field("EN", 1), Field("PSP", 3), Field("CT", 4, 8), Field("COLD", 12, 10))),
    ("TIPG", TIPG, (Field("IPGT", 0, 10), Field("IPGR1", 10, 10), Field("IPGR2", 20, 10))),
    ("TDBAL", TDBAL, ()),
    ("TDBAH", TDBAH, ()),
    ("TDLEN", TDLEN, ()),
    ("TDH", TDH, ()),
    ("TDT", TDT, ()),
    ("TXDCTL", TXDCTL, (Field("WTHRESH", 16, 6), Field("COUNT_DESC", 22), Field("GRAN", 24))),
)


# of a legacy receive descriptor (7.1.3.3, 7.1.3.4) and a legacy transmit descriptor (7.2.10.1.4, 7.2.10.1.5)
RX_STATUS = tuple(Field(n, i) for i, n in enumerate(("DD", "EOP", "IXSM", "VP", "UDPCS", "L4CS", "IPCS", "PIF")))
RX_ERRORS = tuple(Field(n, i) for i, n in enumerate(("CE", "SE", "SEQ", "RSV", "CXE", "L4E", "IPE", "RXE")))
TX_COMMAND = tuple(Field(n, i) for i, n in enumerate(("EOP", "IFCS", "IC", "RS", "RSV", "DEXT", "VLE", "IDE")))
TX_STATUS = tuple(Field(n, i) for i, n in enumerate(("DD", "EC", "LC")))


def decode_register(value: int, fields: tuple[Field, ...]) -> str:
    """`FD SLU SPEED=2`: single bits that are set by name, wider fields with their value."""
    words = []
    for field in fields:
        content = value >> field.low & (1 << field.width) - 1
        if field.width > 1:
            words.append(f"{field.name}={content:#x}")
        elif content:
            words.append(field.name)
    return " ".join(words)
