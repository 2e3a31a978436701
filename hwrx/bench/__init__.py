"""The bench: the hosts of a laboratory by name, what each can do, and how hwrx gets there."""
