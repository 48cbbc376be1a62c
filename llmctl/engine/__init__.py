"""The shared core: models by name, loading, generation. Import what you need from its modules."""

import os

# OpenMP reads these when torch is imported. Threads that spin while they wait make a step around
# ten times slower as soon as anything else runs on the machine, such as our own event loop.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
