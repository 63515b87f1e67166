"""The agent: `farm-client join`. It talks to the farm and keeps executors; it never imports torch."""
