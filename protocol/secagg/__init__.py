"""Secure aggregation: the server learns the sum of a round's updates and none of them.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017 (eprint 2017/281), in
the variant against a server that is honest but curious. ``fixed_point``: updates as integers, so that sums are exact.
``masks``: the pseudorandom masks. ``keys``: what pairs of clients agree on. ``shamir``: secrets as shares. ``member``:
a client's steps. ``unmasking``: the server's. All pure: randomness is an argument.
"""
