"""The heart: how one VM is replicated, what is decided on the way, and how its replica is started."""
