"""Understudy: VM replication and disaster recovery."""
