"""Readers and writers of data files, and the sources that a user names."""
