"""What can go wrong between a researcher and a farm, beside the errors that the farm itself answers.

FarmError
├── NoFarmAddress        nobody said which farm
├── BadFarmAddress       the address cannot be one of a farm
├── FarmUnreachable      nothing answers there, or what answers is not a farm
├── BadOutput            a model cannot be written there
├── BadFormat            a model cannot be written in this form
└── MissingLibrary       what writes it needs a library that is not installed here
"""

from __future__ import annotations

from pydantic import ValidationError

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


class BadOutput(FarmError):
    """The model cannot be written there; give a file's name with -o."""

    code = "bad_output"


class BadFormat(FarmError):
    """The model cannot be written in this form; `farm pull --help` lists them."""

    code = "bad_format"


class MissingLibrary(FarmError):
    """A library is not installed here that this needs."""

    code = "missing_library"


def first_problem(error: ValidationError, source: object = None) -> str:
    """Return the first thing that is wrong with a record, in a line: ``SOURCE: recipe.rounds: …``."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step) for step in problem["loc"])
    parts = [str(source) if source else "", where, problem["msg"].removeprefix("Value error, ")]
    return ": ".join(part for part in parts if part)
