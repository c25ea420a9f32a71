"""Data folders: finding the images, auditing near-duplicates, splitting without leaks, and decoding once."""
