"""What the server is given: settings, clock, tokens, data folder, and disk space.

It may import no other room: everything else stands on it.
"""
