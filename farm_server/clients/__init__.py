"""The volunteers' connections: who is connected as which incarnation, the messages received, and the messages sent.

It may import the edge, the control loop, tensors and transfers, and what those may import.
"""
