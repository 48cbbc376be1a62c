"""The inside of the Transformers backend: rows, sampling and the step loop."""
