"""What both sides agree on: messages, framing, a sans-I/O session, tensor layout, versions, the error tree."""
