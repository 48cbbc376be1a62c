"""Sweeps that write the tables of docs/compatibility.md; each module is run as a script."""
