"""What lies between the two ends of a comparison: the topologies, how each is put up and taken down, and made worse."""
