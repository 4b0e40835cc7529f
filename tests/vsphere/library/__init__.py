"""A stand-in for the proprietary disk library, which nobody may ship, and its builder; see ``disklib.c``."""
