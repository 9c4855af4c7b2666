"""Prem's encrypted protocol without input or output: bytes and values only."""
