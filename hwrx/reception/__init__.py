"""How one packet is received, in full: from the NIC's descriptor to the reader's page table, each step as it was seen.

`scene` sends it while `records` has the kernel's programs armed; `trail` picks its events, `steps` puts them in the
articles' order, and `words_nic`, `words_stack` and `words_reader` say what each one was.
"""
