"""The Cython modules: everything that runs between the first and the last message of a trial.

Rooms, lowest first; a room knows those below it, and not its neighbours:

    headers                 C headers
    core                    clock, payload, pinned memory, transport, trial
    sockets  verbs  bpf     paths of the kernel and of verbs devices; the ledger's programs
    frames                  paths of whole frames
    roce                    RoCEv2's packets and its reliable connection, over any link of frames
    nics                    NICs driven from here
    loops                   what drives a path, through the table in `core/transport.pxd`

A reader begins with `loops/loop.pyx` and `core/transport.pxd`. Of hwrx the rooms know its errors; all else is handed
in.
"""
