"""Lets `python -m llmctl` do what the `llmctl` script does."""

from llmctl.cli.app import main

if __name__ == "__main__":
    main()
