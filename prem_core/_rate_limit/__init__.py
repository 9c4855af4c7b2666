"""How many requests may be open, and when the next one may start."""
