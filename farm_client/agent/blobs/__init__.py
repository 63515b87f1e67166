"""Blobs on their way to this machine and on it: transfers, the bounded cache, and the fetcher over both.

It may import the connection, for the address and the token of the farm.
"""
