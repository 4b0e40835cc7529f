"""Schema migrations of the configuration database."""
