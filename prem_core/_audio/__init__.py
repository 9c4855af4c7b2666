"""Recordings: finding, reading, splitting and transcribing them, and making texts and subtitles of the result."""
