"""HTTP servers on this machine, shared by the embedded enclave and the proxy."""
