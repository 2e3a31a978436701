"""The machine: what it is, what of it spoils a measurement, on which CPUs and under which scheduling both ends run."""
