"""What stops an agent, each with the sentence that its person reads.

FarmError
├── BadSettings        an option or variable with a wrong value
├── BadAddress         the address is not one that `farm-server up` prints
├── HomeInUse          another agent holds this home
├── BadHome            the home cannot be written, or its identity cannot be read
├── DeviceRefused      no device of this machine computes rightly
├── OutOfReach         the farm was not reached within ``give_up_seconds``
├── CacheFull          the cache cannot make room
├── BadBundle          a code bundle that must not be unpacked
├── ExecutorDied       the executor process ended by itself
└── ExecutorFailed     the executor reported that loading or running failed
"""

from __future__ import annotations

from protocol.errors import FarmError


class BadSettings(FarmError):
    """An option or environment variable has a wrong value."""

    code = "bad_settings"


class BadAddress(FarmError):
    """The address is wrong; paste the line that `farm-server up` printed."""

    code = "bad_address"


class HomeInUse(FarmError):
    """Another agent uses this home; give this one its own with --home."""

    code = "home_in_use"


class BadHome(FarmError):
    """The home folder cannot be used; choose another with --home."""

    code = "bad_home"


class DeviceRefused(FarmError):
    """No device of this machine passed its self-test, so its results could not be trusted."""

    code = "device_refused"


class OutOfReach(FarmError):
    """The farm could not be reached; check the address and the network."""

    code = "out_of_reach"


class CacheFull(FarmError):
    """The cache has no room for this blob; raise --cache-bytes or free disk space."""

    code = "cache_full"


class BadBundle(FarmError):
    """The task's code bundle is not a zip that may be unpacked."""

    code = "bad_bundle"
