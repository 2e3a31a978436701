"""What every path shares: clock, payload, pinned memory, a path's table of functions, a trial and its counts."""
