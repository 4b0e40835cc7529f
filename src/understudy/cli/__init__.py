"""The command line: one module per group, one function per command. Text for people, or JSON."""
