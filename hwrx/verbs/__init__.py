"""Verbs devices: which this machine has, and SoftRoCE put on a netdev."""
