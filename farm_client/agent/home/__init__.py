"""What outlives a run of the agent: its folder, identity, the farms it knows, and finished work not yet acknowledged.

It may import the errors of the agent and farm_client's files; no other room.
"""
