"""Ends, and leaves a thread that computes on."""

import threading
from itertools import count

threading.Thread(target=lambda: sum(count())).start()
