"""The WebSocket to the farm: its address, dialing, frames, unacknowledged messages, and when to reconnect.

It may import the home; it knows no assignment and no executor.
"""
