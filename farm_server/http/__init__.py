"""The HTTP side: one router for each part of the API, one place for errors, one for tokens."""
