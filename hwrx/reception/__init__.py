"""How one packet is received, in full: from the NIC's descriptor to the reader's page table, each step as it was seen."""
