"""The shared core: models by name, loading, generation. Import what you need from its modules."""

import os
import sys

# OpenMP reads these when torch is imported. Threads that go to sleep between two operators take
# longer to wake than most operators take; those that spin on and on make a step around ten times
# slower as soon as anything else runs. GNU's OpenMP, which is torch's on Linux, can be told to spin
# for about half a millisecond; others sleep. Where other programs are at work we have fewer threads
# (batching/neighbours.py).
os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if sys.platform == "linux" else "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# oneDNN keeps a compiled kernel for every shape of product it has met, by default 1,024 of them and
# up to a megabyte each. So many shapes are in use at a time at most (engine/batching/shapes.py).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
