"""Attestation over the wire: the settings, the flow that collects and verifies evidence, and what is remembered."""
