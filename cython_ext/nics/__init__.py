"""NICs that hwrx drives itself: their rings, registers, interrupts and DMA."""
