"""Fault injection: a proxy on real sockets between client and enclave, and the table of faults."""
