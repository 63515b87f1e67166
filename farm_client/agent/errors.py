"""Errors that stop an agent, each with the sentence that its owner reads.

FarmError
├── BadSettings        an option or variable with a wrong value
├── BadAddress         the address is not one that `farm-server up` prints
├── HomeInUse          another agent holds this home
├── BadHome            the home cannot be written
│   ├── DamagedIdentity    its identity cannot be read
│   └── DamagedPolicy      what its owner allows cannot be read
├── NoAgent            no agent runs in a home, or it cannot be spoken to
│   └── NoControlSocket    its control socket cannot be made or does not answer
├── BadControlRequest  a request of the control socket that cannot be understood
├── ControlRefused     the running agent did not do what it was asked to
├── ServiceFailed      the system did not take, or let go, the agent's service
├── NoSandbox          nothing on this machine holds strangers' code
├── DeviceRefused      no device of this machine computes rightly
├── OutOfReach         the farm was not reached; another try may reach it
│   ├── NotAFarm       what answers there does not answer as a farm does
│   └── Displaced      another machine works under this one's identity
├── NoSuchTask         nothing in the cache is of a task that is called so
├── CacheFull          the cache cannot make room within its limit
├── DiskFull           the disk cannot take what is to be kept
├── HomeGone           the home is not there any more
├── BadBundle          a code bundle that must not be unpacked
├── NoEnvironment      a task's packages can't be installed here
├── LacksModule        this machine has not installed what a task needs
├── EndsAgent          a task in whose midst the agent ended twice
├── ExecutorDied       the executor process ended by itself
└── ExecutorFailed     the executor reported that loading or running failed
"""

from __future__ import annotations

from farm_client.executor.messages import Failed
from farm_client.executor.postmortem import ProcessDeath
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


class DamagedIdentity(BadHome):
    """The home's identity is damaged; delete it, and this machine joins as a new client."""

    code = "damaged_identity"


class DamagedPolicy(BadHome):
    """What this machine's owner allows is damaged; mend it, or delete it and set it again with `farm-client set`."""

    code = "damaged_policy"


class NoAgent(FarmError):
    """No agent runs in this home; start one with `farm-client join ADDRESS`."""

    code = "no_agent"


class NoControlSocket(NoAgent):
    """The agent's control socket cannot be made, or nobody answers there."""

    code = "no_control_socket"


class BadControlRequest(FarmError):
    """A request of the control socket is one line of JSON: an object whose `do` names what to do."""

    code = "bad_request"


class ControlRefused(FarmError):
    """The running agent did not do what it was asked to; its sentence says why."""

    code = "refused"


class ServiceFailed(FarmError):
    """The agent could not be made a service of this system, or be taken out of it."""

    code = "service_failed"


class NoSandbox(FarmError):
    """No sandbox that the owner would take holds on this machine."""

    code = "no_sandbox"


class DeviceRefused(FarmError):
    """No device of this machine passed its self-test, so its results could not be trusted."""

    code = "device_refused"


class OutOfReach(FarmError):
    """The farm could not be reached; check the address and the network."""

    code = "out_of_reach"

    def __init__(self, message: str | None = None, *, was_slow: bool = False, retry_after_seconds: float = 0.0) -> None:
        """``was_slow``: no answer came in time. ``retry_after_seconds``: how long the answer asks to wait."""
        super().__init__(message)
        self.was_slow = was_slow
        self.retry_after_seconds = retry_after_seconds


class NotAFarm(OutOfReach):
    """What answers at the address does not answer as a farm does: a wrong address, or a proxy without its farm."""

    code = "not_a_farm"

    def __init__(self, message: str | None = None, verdict: type[FarmError] = BadAddress) -> None:
        """``verdict``: what it is if no farm was ever met at this address."""
        super().__init__(message)
        self._verdict = verdict

    def final(self) -> FarmError:
        """Return the error that ends an agent which never met a farm there."""
        return self._verdict(f"{self.message}; check the address: paste the one that `farm-server up` printed")


class Displaced(OutOfReach):
    """Another machine uses this one's identity: a home that was copied, with a disk or an image of a machine.

    Let one of the two stop, and start it again with `farm-client join --new-identity ADDRESS`.
    """

    code = "displaced"

    def __init__(self) -> None:
        super().__init__(
            "another machine uses this machine's identity (its home folder was copied); stop this agent and start it "
            "with `farm-client join --new-identity ADDRESS`, and both can work"
        )


class NoSuchTask(FarmError):
    """No task of that name, or several."""

    code = "no_such_task"


class CacheFull(FarmError):
    """The cache has no room for this blob; raise --cache-bytes or free disk space."""

    code = "cache_full"


class DiskFull(FarmError):
    """The disk that holds the agent's home is full; free some space, or choose another folder with --home."""

    code = "disk_full"


class HomeGone(FarmError):
    """The agent's home folder is gone while it runs; it waits until it is back."""

    code = "home_gone"


class BadBundle(FarmError):
    """The task's code bundle is not a zip that may be unpacked."""

    code = "bad_bundle"


class LacksModule(FarmError):
    """A module that the task needs is not installed here."""

    code = "missing_module"


class NoEnvironment(FarmError):
    """The packages that the task's lock names can't be had on this machine."""

    code = "no_environment"


class NoCertificate(FarmError):
    """The farm gave no certificate."""

    code = "no_certificate"


class EndsAgent(FarmError):
    """This machine's agent ended twice in the midst of this task's work, so it leaves the task alone for a while."""

    code = "ends_agent"


class ExecutorDied(FarmError):
    """The executor ended by itself."""

    code = "executor_died"

    def __init__(self, death: ProcessDeath, doing: str, last_lines: tuple[str, ...]) -> None:
        super().__init__(f"{death.message} while it was {doing}")
        self.death = death
        self.last_lines = last_lines


class ExecutorFailed(FarmError):
    """The executor reported that loading the task or running the assignment failed."""

    code = "executor_failed"

    def __init__(self, report: Failed) -> None:
        super().__init__(report.message)
        self.report = report
