"""Pure conversion between the wire formats and our types. A field not given is `None`."""
