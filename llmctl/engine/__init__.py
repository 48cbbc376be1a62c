"""Loading of models and generation with them. Import from the modules of this package."""

import os
import sys

# OpenMP reads these when torch is imported. Threads that sleep between two operators take longer to
# wake than most operators take; threads that spin without limit make a step about ten times slower
# as soon as another program runs. GNU's OpenMP, which torch uses on Linux, can spin for about half
# a millisecond; others sleep. While other programs run, torch gets fewer threads
# (batching/forward/cpu_load.py).
os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if sys.platform == "linux" else "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# oneDNN keeps a compiled kernel for every shape of matrix product, by default 1,024 of them with up
# to a megabyte each. No more shapes than this are in use (batching/bucket_size.py).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
