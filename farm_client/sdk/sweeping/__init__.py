"""Sweeps: many tasks of one code and data that differ in a few settings, to find the best."""
