"""The data mover: reads, filters, sends and writes disk data. It gets values and returns values; it knows no jobs."""
