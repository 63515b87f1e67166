"""Sets the machine's clock, to the time that it shows."""

import time

from farm_client.sandbox.escape_attempt import escaped

time.clock_settime(time.CLOCK_REALTIME, time.time())
escaped("set the machine's clock")
