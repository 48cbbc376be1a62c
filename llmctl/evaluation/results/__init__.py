"""Results on disk and how they are shown: the folder of a run, tables, the HTML report."""
