"""The filters, call by call: what the program answers is what the rules here say, in other words than the code's."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sandbox import system
from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.seccomp import build_filter
from farm_client.sandbox.syscalls import NUMBERS
from tests.farm_client.sandbox.bpf_machine import AARCH64, X86_64, evaluate

ALLOW, KILL = 0x7FFF0000, 0x80000000
OWN_PID = 4711
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}

_NO_TASKS = """
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp perf_event_open bpf userfaultfd
    memfd_secret mount umount2 fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr
    pivot_root chroot setns unshare listns add_key request_key keyctl io_uring_setup io_uring_enter
    io_uring_register open_by_handle_at name_to_handle_at swapon swapoff reboot kexec_load kexec_file_load
    init_module finit_module delete_module acct quotactl quotactl_fd syslog settimeofday clock_settime adjtimex
    clock_adjtime sethostname setdomainname iopl ioperm modify_ldt vhangup fanotify_init fanotify_mark
    lsm_get_self_attr lsm_set_self_attr lsm_list_modules migrate_pages move_pages file_getattr file_setattr
    lookup_dcookie nfsservctl _sysctl sysfs ustat uselib vserver afs_syscall tuxcall security create_module
    get_kernel_syms query_module getpmsg putpmsg epoll_ctl_old epoll_wait_old get_thread_area set_thread_area"""
NO_TASKS = frozenset(_NO_TASKS.split())
_MORE = """
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget msgsnd msgrcv msgctl semget
    semop semtimedop semctl shmget shmat shmdt shmctl setsid setpgid chown fchown lchown fchownat socket
    inotify_add_watch process_mrelease"""
NOT_BESIDE_LANDLOCK = frozenset(_MORE.split())
PRETENDED = frozenset("chmod fchmod fchmodat fchmodat2 utime utimes futimesat".split())  # noqa: SIM905
XATTRS = frozenset(
    f"{verb}xattr{at}" for verb in ("set", "lset", "fset", "remove", "lremove", "fremove") for at in ("", "at")
)
OWN_ONLY = frozenset({"prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"})
SIGNALS = frozenset({"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"})


@dataclass(frozen=True)
class Variant:
    machine: str
    namespaces: bool
    scoped_signals: bool

    def program(self) -> bytes:
        return build_filter(self.machine, namespaces=self.namespaces, scoped_signals=self.scoped_signals, pid=OWN_PID)


VARIANTS = [
    Variant(machine, namespaces, scoped)
    for machine in NUMBERS
    for namespaces, scoped in ((True, True), (True, False), (False, True), (False, False))
]
PROGRAMS = {variant: variant.program() for variant in VARIANTS}


def fails(error: int) -> int:
    return 0x00050000 | error


def answer(variant: Variant, name: str, low: list[int]) -> int:
    """Say what becomes of a call of the table, given the low halves of its arguments."""
    if name == "clone3":
        return fails(errno.ENOSYS)
    if name in NO_TASKS:
        return fails(errno.EPERM)
    if name == "clone":
        return fails(errno.EPERM) if low[0] & 0x7E028000 else ALLOW
    if name == "personality":
        return ALLOW if low[0] in {0, 0xFFFFFFFF} else fails(errno.EPERM)
    if name == "ioctl" and low[1] in {0x5412, 0x541C}:
        return fails(errno.EPERM)
    if name == "socketpair" and low[0] != 1:
        return fails(errno.EAFNOSUPPORT)
    return behind_namespaces(name, low) if variant.namespaces else beside_landlock(variant, name, low)


def behind_namespaces(name: str, low: list[int]) -> int:
    if name != "socket":
        return ALLOW
    if low[0] not in {1, 2, 10}:
        return fails(errno.EAFNOSUPPORT)
    if low[1] % 16 not in {1, 2, 5}:
        return fails(errno.EPERM)
    return ALLOW if low[2] in {0, 6, 17} else fails(errno.EPROTONOSUPPORT)


def beside_landlock(variant: Variant, name: str, low: list[int]) -> int:
    if name in PRETENDED:
        return fails(0)
    if name == "utimensat":
        return fails(errno.EPERM if low[2] == 0 and low[1] != 0 else 0)
    if name in XATTRS:
        return fails(errno.ENOTSUP)
    refused = (
        name in NOT_BESIDE_LANDLOCK
        or (name in OWN_ONLY and low[0] != 0)
        or (name == "setpriority" and low[:2] != [0, 0])
        or (name == "ioprio_set" and low[:2] != [1, 0])
        or (name == "socketpair" and low[1] % 16 not in {1, 5})
        or (name == "ioctl" and low[1] in {0x40086602, 0x401C5820, 0x40806685})
        or (not variant.scoped_signals and signals_another(name, low))
    )
    return fails(errno.EPERM) if refused else ALLOW


def signals_another(name: str, low: list[int]) -> bool:
    return (
        (name in SIGNALS and low[0] != OWN_PID)
        or name in {"pidfd_open", "pidfd_send_signal"}
        or (name == "fcntl" and low[1] in {8, 15})
        or (name == "ioctl" and low[1] in {0x8901, 0x8902})
    )


TELLING = [
    *range(19),
    OWN_PID,
    OWN_PID + 1,
    *(0x5412, 0x541C, 0x8901, 0x8902, 0x40086602, 0x401C5820, 0x40806685),
    *(0x11, 0x01200011, 0x10000000, 0x8000, 0x80002, 0x800, 0x80003, 0xFFFFFFFF, 0x08000000),
]
ARGUMENTS = st.lists(
    st.builds(
        lambda low, high: low | high << 32, st.sampled_from(TELLING) | st.integers(0, 0xFFFFFFFF), st.integers(0, 1)
    ),
    min_size=6,
    max_size=6,
)


@given(st.sampled_from(VARIANTS), st.data(), ARGUMENTS)
def test_a_call_of_the_table_is_answered_by_its_rule(
    variant: Variant, data: st.DataObject, arguments: list[int]
) -> None:
    name = data.draw(st.sampled_from(sorted(NUMBERS[variant.machine])))
    given_answer = evaluate(
        PROGRAMS[variant], NUMBERS[variant.machine][name], arguments, ARCHITECTURES[variant.machine]
    )
    assert given_answer == answer(variant, name, [argument & 0xFFFFFFFF for argument in arguments])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_call_of_the_table_with_every_telling_argument(variant: Variant) -> None:
    for name, number in NUMBERS[variant.machine].items():
        for first in (0, 1, 2, 3, 10, 16, 0x10000000, 0x8000, OWN_PID, 0xFFFFFFFF):
            for second in TELLING:
                low = [first, second, 17, 0, 0, 0]
                assert evaluate(PROGRAMS[variant], number, low, ARCHITECTURES[variant.machine]) == answer(
                    variant, name, low
                ), (name, low)


@given(st.sampled_from(VARIANTS), st.integers(0, 0xFFFFFFFF) | st.integers(330, 600))
def test_a_number_that_nobody_has_is_unknown_and_one_of_x32_kills(variant: Variant, number: int) -> None:
    if number in NUMBERS[variant.machine].values():
        return
    expected = KILL if 0x40000000 <= number < 0xFFFFFFFF else fails(errno.ENOSYS)
    assert evaluate(PROGRAMS[variant], number, (), ARCHITECTURES[variant.machine]) == expected


@given(st.sampled_from(VARIANTS), st.integers(0, 500), st.sampled_from([X86_64, AARCH64, 0x40000003, 0x40000028, 0]))
def test_a_call_of_another_architecture_kills(variant: Variant, number: int, architecture: int) -> None:
    answered = evaluate(PROGRAMS[variant], number, (0,) * 6, architecture)
    assert (answered == KILL) == (architecture != ARCHITECTURES[variant.machine])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_filter_is_short(variant: Variant) -> None:
    assert len(PROGRAMS[variant]) % 8 == 0
    assert len(PROGRAMS[variant]) // 8 < 400


@pytest.mark.parametrize("machine", NUMBERS)
def test_files_of_memory_are_made_only_where_nothing_else_counts(machine: str) -> None:
    number, architecture = NUMBERS[machine]["memfd_create"], ARCHITECTURES[machine]
    for namespaces in (True, False):
        allows = build_filter(machine, namespaces=namespaces)
        refuses = build_filter(machine, namespaces=namespaces, memory_files=False)
        assert evaluate(allows, number, architecture=architecture) == ALLOW
        assert evaluate(refuses, number, architecture=architecture) == 0x50000 | errno.EPERM


def test_signals_reach_the_caller_where_no_pid_is_given_and_scopes_are_not_taken_for_granted() -> None:
    program = build_filter("x86_64", namespaces=False)
    kill = NUMBERS["x86_64"]["kill"]
    assert evaluate(program, kill, (os.getpid(), 9)) == ALLOW
    assert evaluate(program, kill, (os.getppid(), 9)) == fails(errno.EPERM)
    assert evaluate(program, kill, (0, 9)) == fails(errno.EPERM)


def test_arm64_is_aarch64_and_other_machines_have_no_filter() -> None:
    assert build_filter("arm64", namespaces=True) == build_filter("aarch64", namespaces=True)
    with pytest.raises(SandboxUnavailable, match="riscv64; join from x86_64 or aarch64"):
        build_filter("riscv64", namespaces=True)


@pytest.mark.parametrize(("platform", "machine"), [("linux", "riscv64"), ("darwin", "x86_64")])
def test_a_machine_without_a_table_makes_no_call(monkeypatch: pytest.MonkeyPatch, platform: str, machine: str) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(SandboxUnavailable, match=f"{platform} {machine}; join from 64-bit Linux"):
        system.call("getpid")


def test_a_call_that_fails_says_which() -> None:
    assert system.call("getpid") == os.getpid()
    with pytest.raises(OSError, match="close: Bad file descriptor") as raised:
        system.call("close", 1 << 20)
    assert raised.value.errno == errno.EBADF
