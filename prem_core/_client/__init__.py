"""`PremClient` and `AsyncPremClient`, and their resources."""
