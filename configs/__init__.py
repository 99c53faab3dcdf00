"""Experiments, one a file; `load_config` runs them."""
