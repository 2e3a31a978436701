"""RDMA verbs as paths: RC and UD, the objects that they work on, and what a failure means."""
