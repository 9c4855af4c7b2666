"""The engines of the embedded enclave: what answers once a request is opened."""
