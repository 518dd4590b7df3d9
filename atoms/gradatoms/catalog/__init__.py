"""Browse the atoms of a folder."""
