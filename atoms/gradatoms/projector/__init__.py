"""The model says, in words, what a gradient pushes toward."""
