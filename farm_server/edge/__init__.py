"""What stands before the application: the listening socket, connections, request heads, upgrades and admission.

It may import the environment and observability; whatever it bounds, it bounds before any token is checked.
"""
