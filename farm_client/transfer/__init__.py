"""Bulk bytes between this machine and a farm, for the agent and for the researcher's SDK alike."""
