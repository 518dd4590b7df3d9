"""Learn, read and measure dictionaries of gradient atoms."""
