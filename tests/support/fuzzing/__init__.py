"""The fuzzer, its mutations, seeds and targets."""
