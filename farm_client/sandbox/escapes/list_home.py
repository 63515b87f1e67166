"""Lists the agent's folder and looks for its secret there."""

import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

secret = Path(TARGETS.secret_file)
if secret.name in os.listdir(secret.parent):
    escaped("saw the secret's name")
