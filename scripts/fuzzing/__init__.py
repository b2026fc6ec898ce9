"""What `scripts/fuzz.py` is made of: the targets, mutations, and the run of many cases."""
