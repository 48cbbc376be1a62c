"""Fine-tuning of language models: LoRA and its variants, full fine-tuning, DPO."""

import logging

# Before Transformers imports it: on a CPU it warns about an optional package each time.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
