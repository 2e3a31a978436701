"""What drives a path: ping-pong, stream and open loop, a flood, and a loop for benchmarks."""
