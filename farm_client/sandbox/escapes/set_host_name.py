"""Names the machine, as it is named."""

import socket

from farm_client.sandbox.escape_attempt import escaped

socket.sethostname(socket.gethostname())
escaped("named the machine")
