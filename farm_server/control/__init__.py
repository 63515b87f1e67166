"""The control loop: events into the coordinator, its commands out, facts into the journal, and wake-ups for readers.

It may import the environment and observability; it knows no socket, no tensor and no route.
"""
