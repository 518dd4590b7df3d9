"""Name atoms by what they push toward."""
