"""What the simulation looks for."""


class Violation(AssertionError):
    """A promise of the farm was broken."""


def check(holds: bool, promise: str) -> None:
    """Raise Violation with the promise, unless it holds."""
    if not holds:
        raise Violation(promise)


class Planted(Exception):
    """An error that a test plants in the farm's rules, to see that the farm contains it."""
