"""Sizes and times that both sides keep to. Bytes and seconds."""

from __future__ import annotations

from typing import Final

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
"""The largest WebSocket message; bulk bytes go over HTTP."""
MAX_BATCH_MESSAGES: Final = 64
MAX_BATCH_BYTES: Final = 64 * 1024
"""So many messages, of so many bytes together, may share a frame; a longer message has its frame alone."""
INLINE_BYTES: Final = 1024 * 1024
"""A blob up to this size may ride inside a message."""
HEARTBEAT_SECONDS: Final = 2.0
LOST_AFTER_SECONDS: Final = 8.0
"""A client that was silent for so long is lost."""
PROGRESS_SECONDS: Final = 0.5
"""How often at most a running assignment sends what its code printed and measured."""
MIN_PACE_SECONDS: Final = 0.05
MAX_PACE_SECONDS: Final = 60.0
"""No client beats or reports at other intervals than between these, whatever a server asks for."""
MAX_CLIENT_VALUES: Final = 16 * 1024
MAX_CLIENT_DEPTH: Final = 32
"""How many values a frame of a client may hold, and how deep they may be nested; an agent's has hundreds, five deep."""
MAX_STRIKES: Final = 3
"""Protocol errors after which the connection is closed."""
MAX_LOG_LINE_CHARS: Final = 2000
MAX_LOG_LINES_PER_MESSAGE: Final = 200
MAX_CACHED_DIGESTS: Final = 4096
"""How many cached digests a hello may list."""
MAX_CONFIG_BYTES: Final = 256 * 1024
