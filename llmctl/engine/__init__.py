"""The shared core: models by name, loading, generation. Import what you need from its modules."""

import os

# OpenMP reads these when torch is imported. Threads that spin while they wait make a step around
# ten times slower as soon as anything else runs on the machine, such as our own event loop.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# oneDNN keeps a compiled kernel for every shape of product it has met, by default 1,024 of them and
# up to a megabyte each. So many shapes are in use at a time at most (engine/batching/shapes.py).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
