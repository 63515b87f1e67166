"""The sandbox: what keeps a task's code on a volunteer's machine to its own folders, processes and system calls.

Its modules import neither torch nor the agent nor the executor: they run before any of these.
"""
