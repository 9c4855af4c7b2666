"""HTTP with httpx: the synchronous and the asynchronous driver of a flow."""
