"""Data folders: images found, audited for near-duplicates, split without leaks, and decoded once."""
