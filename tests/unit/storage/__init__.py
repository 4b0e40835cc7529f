"""Tests of the replica stores."""
