"""The program that runs inside guests, run for real."""
