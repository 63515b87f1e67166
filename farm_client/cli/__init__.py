"""The `farm` command: what a researcher types."""
