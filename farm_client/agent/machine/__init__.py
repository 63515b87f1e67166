"""The machine that is lent: its devices and load, and the self-test that shows that they compute rightly.

It may import the errors of the agent and what the executor says of itself; no other room.
"""
