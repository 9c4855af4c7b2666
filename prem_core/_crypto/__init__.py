"""X-Wing, XChaCha20-Poly1305, encryption keys and key files."""
