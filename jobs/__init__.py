"""One process per file: parse, call, exit."""
