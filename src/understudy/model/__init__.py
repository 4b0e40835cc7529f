"""Values that cross module borders: frozen dataclasses and enums, no input or output."""
