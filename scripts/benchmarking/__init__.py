"""What `scripts/bench.py` is made of: programs, what a run of one costs, and tables of that."""
