"""What several commands have in common. A command imports nothing of another one."""
