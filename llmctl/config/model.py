"""Which model is meant where nobody names one."""

DEFAULT_MODEL = "smollm2-135m"
