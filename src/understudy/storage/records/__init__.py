"""What the stores of all kinds keep of a replica in files: its record, points, digests, locks; never disk data."""
