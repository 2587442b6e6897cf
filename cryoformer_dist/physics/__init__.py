"""Image formation in pure torch: no I/O, no configuration, no distribution."""
