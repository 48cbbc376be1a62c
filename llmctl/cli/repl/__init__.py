"""How a conversation looks and is led in a terminal: lines read, commands done, replies shown."""
