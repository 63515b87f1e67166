"""The agent: `farm-client join`. It talks to the farm and keeps executors; it never imports torch."""

import sys
from typing import Final

_NO_USE_TO_AN_AGENT: Final = "httpx._main"
"""The command line of the HTTP library, which it imports wherever rich is installed: 5 MB in every idle agent."""

sys.modules.setdefault(_NO_USE_TO_AN_AGENT, None)  # type: ignore[arg-type]  # None: "not there", says the import system
