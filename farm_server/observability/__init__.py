"""How the server shows what it does: structured logs, Prometheus metrics, and the newest alarms.

It may import the environment.
"""
