"""What happens to a task as a whole: its submission, the checks before it, its removal, and its rescue.

It may import tensors, transfers and housekeeping, and what those may import; it knows no connection.
"""
