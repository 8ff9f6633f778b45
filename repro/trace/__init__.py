"""Sessions of coding agents: their format, importers of foreign ones, and synthesis. Anybody above may read them."""
