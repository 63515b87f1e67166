"""The REST API and the status page: one router for each part, one place for errors, one for tokens.

It may import the rooms below it; it decides nothing itself.
"""
