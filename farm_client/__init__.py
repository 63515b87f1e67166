"""The volunteer's agent, cache and executor; the researcher's SDK and the `farm` CLI."""
