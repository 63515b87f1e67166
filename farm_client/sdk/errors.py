"""What can go wrong between a researcher and a farm, beside the errors that the farm itself answers.

FarmError
├── NoFarmAddress        nobody said which farm
├── BadFarmAddress       the address cannot be one of a farm
└── FarmUnreachable      nothing answers there, or what answers is not a farm
"""

from __future__ import annotations

from protocol.errors import FarmError


class NoFarmAddress(FarmError):
    """No farm is known: give --farm URL, set FARM_URL, or run `farm login URL` once; `farm demo` needs none."""

    code = "no_farm_address"


class BadFarmAddress(FarmError):
    """The farm's address must look like http://TOKEN@host:8470; `farm-server up` prints it."""

    code = "bad_farm_address"


class FarmUnreachable(FarmError):
    """No farm answers there: is `farm-server up` running, and is the address right?"""

    code = "farm_unreachable"
