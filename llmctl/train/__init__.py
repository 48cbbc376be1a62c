"""Teaches models, and makes what was learnt into a model of its own."""

import logging

# Before Transformers imports it: on a CPU it warns of an optional package each time.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
