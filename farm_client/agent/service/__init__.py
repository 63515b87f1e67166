"""The agent as a service of its owner's login: the file that each system wants, and the commands that take it.

It names no farm and no token: those are in the home, for its owner's eyes only.
"""
