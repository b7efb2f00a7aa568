"""What is measured, not asserted: run with `make benchmark`."""
