"""Gradient atoms: read what training pushes a language model toward."""
