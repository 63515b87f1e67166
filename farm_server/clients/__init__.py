"""The volunteers' connections: who is connected as which incarnation, what they say, and what they are told.

It may import the edge, the control loop, tensors and transfers, and what those may import.
"""
