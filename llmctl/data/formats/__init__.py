"""Between the columns of each format and an example: parsing and rendering."""
