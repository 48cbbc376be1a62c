"""How fast do a server or the engine in this process answer? Measures, sums up, draws."""
