"""What logind says of a desktop, by a program in its place."""

import sys

import pytest

from farm_client.agent.owner.desktop import DesktopIdle
from farm_client.agent.owner.observing import MachineWatch
from farm_client.agent.owner.policy import OwnerPolicy


class Desktop:
    def __init__(self, script):
        self.now = 1000.0
        self.idle = DesktopIdle((sys.executable, "-c", script), lambda: self.now)

    def answer(self):
        """Ask, and return what is known when the answer is here."""
        self.idle.seconds()
        self.idle.asking.join(60)
        return self.idle.seconds()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("IdleHint=yes\nIdleSinceHint=940000000", 60.0),
        ("IdleSinceHint=2000000000\nIdleHint=yes", 0.0),  # a clock that was set back
        ("IdleHint=no\nIdleSinceHint=0", 0.0),
        ("IdleHint=yes", None),
        ("IdleHint=yes\nIdleSinceHint=soon", None),
        ("", None),
    ],
)
def test_what_is_said_is_how_long_it_is_idle(said, seconds):
    desktop = Desktop(f"print({said!r})")
    assert desktop.idle.seconds() is None
    assert desktop.answer() == seconds


def test_a_failure_or_no_such_program_tells_nothing():
    assert Desktop("raise SystemExit(1)").answer() is None
    desktop = Desktop("")
    desktop.idle = DesktopIdle(("/nonexistent/loginctl",), lambda: desktop.now)
    assert desktop.answer() is None


@pytest.mark.parametrize(("script", "seconds"), [("print('IdleHint=no\\nIdleSinceHint=0')", 5), ("exit(1)", 300)])
def test_it_is_asked_now_and_then(script, seconds):
    desktop = Desktop(script)
    desktop.answer()
    first = desktop.idle.asking
    desktop.now += seconds - 1
    desktop.idle.seconds()
    assert desktop.idle.asking is first
    desktop.now += 1
    desktop.idle.seconds()
    assert desktop.idle.asking is not first
    desktop.idle.asking.join(60)


@pytest.mark.parametrize(
    ("terminal", "desktop", "seen"), [(30.0, 60.0, 30.0), (60.0, 30.0, 30.0), (None, 5.0, 5.0), (5.0, None, 5.0)]
)
def test_the_last_input_of_all_counts(terminal, desktop, seen):
    watch = MachineWatch(inputs=(lambda: terminal, lambda: desktop))
    assert watch.look(OwnerPolicy(only_idle=True)).input_idle_seconds == seen
    assert MachineWatch(inputs=(lambda: None,)).look(OwnerPolicy(only_idle=True)).input_idle_seconds is None
