"""Where the repository keeps what tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TESTS: Final = ROOT / "tests"
DATA: Final = TESTS / "data"
SCHEMAS: Final = ROOT / "prem_core" / "enclave" / "schemas"
VECTORS: Final = DATA / "vectors"
MEDIA: Final = DATA / "media"
CLINIC_NOTE: Final = ROOT / "examples" / "clinic_note.wav"
