"""Benchmark of the latency and throughput of a server or of an engine in this process."""
