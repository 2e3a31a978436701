"""Verbs devices: which this machine has, SoftRoCE put on a netdev, and what a bad completion means."""
