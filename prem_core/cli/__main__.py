"""``python -m prem_core.cli``."""

from prem_core.cli import main

main()
