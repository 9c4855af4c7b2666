"""One module for each subcommand of `prem`."""
