"""What a researcher's tools write down of an environment, read as pins: ``uv.lock``, ``pylock.toml``, requirements."""
