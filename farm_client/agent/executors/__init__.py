"""The processes that run the researcher's code: started, kept warm, given a task, and watched as they end.

It may import the errors of the agent and the executor's messages; no other room.
"""
