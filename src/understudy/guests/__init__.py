"""Guest processing: what happens inside a guest around the source snapshot."""
