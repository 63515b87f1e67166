"""What the machine's owner allows and when, why nothing is done now, and the local socket over which that changes live.

It may import home and machine. See docs/owner.md.
"""
