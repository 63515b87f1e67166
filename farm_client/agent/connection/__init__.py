"""The WebSocket to the farm: its address, dialing, frames, what must be said again, and when to come back.

It may import the home; it knows no assignment and no executor.
"""
