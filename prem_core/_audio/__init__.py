"""Recordings: reading, cutting and transcribing them, and what comes back."""
