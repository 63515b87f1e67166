"""What the owner of the machine sees: lines on the terminal, and the file behind `farm-client status`.

It may import the blobs, for how the cache and the transfers fare.
"""
