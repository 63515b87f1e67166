"""What an operator runs: the daemon, doctor, backup and restore, and garbage collection.

It may import every other room; only the command line may import it.
"""
