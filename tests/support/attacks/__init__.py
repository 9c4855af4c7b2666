"""Attacks of a gateway on the documented protocol. `python -m support.attacks`, in tests/, prints their figures.

The attacking code has no key of the client or the enclave. It has what a gateway carries (`gateway`), and the form of a
chunk, which it learns with an API key of its own (`chunk_form`). `scenario` holds the other side: the client, the model
and the texts, and compares what was read with what was written.
"""
