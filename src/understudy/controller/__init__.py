"""The controller: configuration database, sessions and the acts on replicas. It moves no disk data."""
