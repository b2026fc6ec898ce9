"""What `scripts/torture.py` is made of: scenes, workers, processes, the ledger, and a reader of the format."""
