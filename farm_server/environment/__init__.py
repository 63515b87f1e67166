"""What the server is given: settings, clock, tokens, data folder, disk space, and planned faults.

It may import no other room: everything else stands on it.
"""
