"""What both framework adapters share: the one door into `prem_core` for them."""
