"""Views: print the results of commands as tables, progress bars and charts."""
