"""Task environments: the packages that a task's lock names, installed apart from the client's own.

Built outside of the sandbox, by uv, from wheels alone, if the owner allows it; read inside of it.
"""
