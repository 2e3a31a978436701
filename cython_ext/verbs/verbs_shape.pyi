class Shape:
    opcode: int
    access: int
    slots: int
    receives: int
    into: bool
    head: int
    least: int
    spare: int
    landing_out: bool
    datagram: bool
    def __init__(
        self,
        *,
        opcode: int,
        access: int,
        slots: int,
        receives: int,
        into: bool = True,
        head: int = 0,
        least: int = 0,
        spare: int = 0,
        landing_out: bool = False,
        datagram: bool = False,
    ) -> None: ...
