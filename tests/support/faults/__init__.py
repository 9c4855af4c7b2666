"""The fault layer: a man in the middle on real sockets, and the table of faults."""
