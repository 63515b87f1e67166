"""The filters at work: each forbidden thing is tried for real, and ordinary work goes on."""

from __future__ import annotations

import platform
import signal
import sys
from pathlib import Path

import pytest

from farm_client.sandbox.syscalls import NUMBERS
from tests.farm_client.sandbox.confined import run, told
from tests.farm_client.sandbox.test_seccomp import NO_TASKS, NOT_BESIDE_LANDLOCK, XATTRS

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in NUMBERS, reason="seccomp filters are for Linux"
)

NAMESPACES = "namespaces=True"
LANDLOCK = "namespaces=False, scoped_signals=True"
ALONE = "namespaces=False, scoped_signals=False"
VARIANTS = [NAMESPACES, LANDLOCK, ALONE]


def under(variant: str) -> str:
    return f"\nseccomp.install(seccomp.build_filter(platform.machine(), {variant}))\n"


EVERY_CALL = """
import sys
names = [name for name in sys.argv[1].split() if name in MINE]
tell(**{name: make(name, *[-1] * 6) for name in names})
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_no_task_needs_is_refused(variant: str) -> None:
    """Arguments are all -1, so that a call that passes fails of itself: vhangup, which has none, is left out."""
    answers = told(under(variant) + EVERY_CALL, " ".join(NO_TASKS - {"vhangup"}))
    assert len(answers) > 50
    assert set(answers.values()) == {"EPERM"}


def test_without_a_filter_the_kernel_answers_otherwise() -> None:
    """What the test above would see if there were none."""
    answers = told(EVERY_CALL, " ".join(NO_TASKS - {"vhangup"}))
    assert len({name for name, answer in answers.items() if answer != "EPERM"}) > 20


@pytest.mark.parametrize("variant", [LANDLOCK, ALONE])
def test_what_landlock_does_not_govern_is_refused(variant: str) -> None:
    answers = told(under(variant) + EVERY_CALL, " ".join(NOT_BESIDE_LANDLOCK | XATTRS))
    assert {answers.pop(name) for name in XATTRS & answers.keys()} == {"ENOTSUP"}
    assert set(answers.values()) == {"EPERM"}


def test_arguments_are_looked_at() -> None:
    """Namespaces, siblings, Linux as it was, families, raw sockets, rarer protocols, typing into a terminal."""
    answers = told(
        under(NAMESPACES)
        + """
master, slave = os.openpty()
MINE.update(unknown=9999, none=-1)
tell(
    new_user=make("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
    sibling=make("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0),
    clone3=make("clone3", -1, -1), unknown=make("unknown"), none=make("none"),
    old=make("personality", 8), present=make("personality", 0xFFFFFFFF),
    vsock=attempt(socket.socket, socket.AF_VSOCK), packet=attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
    netlink=attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
    raw=attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    old_packet=attempt(socket.socket, socket.AF_INET, 10),
    mptcp=attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262),
    tcp=attempt(socket.socket), udp6=attempt(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM),
    unix=attempt(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC),
    pair=attempt(socket.socketpair), tipc_pair=make("socketpair", 30, 1, 0, -1),
    typing=make("ioctl", slave, 0x5412, -1), size=attempt(os.get_terminal_size, slave),
)
"""
    )
    assert answers == {
        "new_user": "EPERM", "sibling": "EPERM", "clone3": "ENOSYS", "unknown": "ENOSYS", "none": "ENOSYS",
        "old": "EPERM", "present": "done",
        "vsock": "EAFNOSUPPORT", "packet": "EAFNOSUPPORT", "netlink": "EAFNOSUPPORT",
        "raw": "EPERM", "old_packet": "EPERM", "mptcp": "EPROTONOSUPPORT",
        "tcp": "done", "udp6": "done", "unix": "done", "pair": "done", "tipc_pair": "EAFNOSUPPORT",
        "typing": "EPERM", "size": "done",
    }  # fmt: skip


@pytest.mark.parametrize("variant", [LANDLOCK, ALONE])
def test_beside_landlock_a_process_stays_alone(variant: str) -> None:
    """Datagrams of a pair could go to any socket's name, flags change through a descriptor that only reads."""
    answers = told(
        under(variant)
        + """
parent = os.getppid()
script = os.open(sys.executable, os.O_RDONLY)
tell(
    tcp=attempt(socket.socket), unix=attempt(socket.socket, socket.AF_UNIX), streams=attempt(socket.socketpair),
    datagrams=attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
    raw=attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_RAW),
    session=attempt(os.setsid), group=attempt(os.setpgid, 0, 0), flags=make("ioctl", script, 0x40086602, -1),
    nicer=attempt(os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0)),
    their_priority=attempt(os.setpriority, os.PRIO_PROCESS, parent, 19),
    affinity=attempt(os.sched_setaffinity, 0, os.sched_getaffinity(0)),
    their_affinity=attempt(os.sched_setaffinity, parent, os.sched_getaffinity(0)),
    limits=make("prlimit64", 0, 7, None, None), their_limits=make("prlimit64", parent, 7, None, None),
)
"""
    )
    assert answers == {
        "tcp": "EPERM", "unix": "EPERM", "streams": "done", "datagrams": "EPERM", "raw": "EPERM",
        "session": "EPERM", "group": "EPERM", "flags": "EPERM", "nicer": "done", "their_priority": "EPERM",
        "affinity": "done", "their_affinity": "EPERM", "limits": "done", "their_limits": "EPERM",
    }  # fmt: skip


def test_modes_and_times_are_left_as_they_are_and_nobody_is_told(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("x")
    answers = told(
        under(LANDLOCK)
        + """
import subprocess
file = Path(sys.argv[1]); before = file.stat(); new = file.with_name("new"); new.touch()
tell(chmod=attempt(file.chmod, 0o777), utime=attempt(os.utime, file, (1, 1)),
     chown=attempt(os.chown, file, -1, -1), xattr=attempt(os.setxattr, file, "user.x", b"y"),
     same=file.stat() == before, touched=attempt(file.touch), made=new.exists(),
     shell=subprocess.run(["touch", str(file)]).returncode)
""",
        tmp_path / "file",
    )
    assert answers == {
        "chmod": "done", "utime": "done", "chown": "EPERM", "xattr": "ENOTSUP", "same": True, "touched": "done",
        "made": True, "shell": 0,
    }  # fmt: skip


SIGNALS = """
import threading
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
child = os.fork()
if not child:
    os.read(0, 1)  # until the test closes the pipe
    os._exit(0)
signal.raise_signal(signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
own = len(heard)
with open(os.devnull) as file:
    import fcntl
    owner = attempt(fcntl.fcntl, file, fcntl.F_SETOWN, child)
a, b = socket.socketpair()
answers = dict(
    own=own, owner=owner, group=make("ioctl", a.fileno(), 0x8901, ctypes.create_string_buffer(8)),
    everyone=attempt(os.kill, 0, 0), parent=attempt(os.kill, os.getppid(), 0), pidfd=attempt(os.pidfd_open, child),
    child=attempt(os.kill, child, signal.SIGKILL), thread=make("tgkill", child, child, signal.SIGKILL),
)
a.close(), b.close()
tell(**answers)
"""


def test_signals_go_where_something_else_scopes_them() -> None:
    answers = told(under(LANDLOCK) + SIGNALS)
    assert answers == {
        "own": 3, "owner": "done", "group": "done", "everyone": "done", "parent": "done", "pidfd": "done",
        "child": "done", "thread": "done",
    }  # fmt: skip


def test_signals_go_to_the_process_itself_where_nothing_scopes_them() -> None:
    """The descriptor's owner would be sent SIGIO, or any signal that F_SETSIG names."""
    answers = told(under(ALONE) + SIGNALS)
    assert answers == {
        "own": 3, "owner": "EPERM", "group": "EPERM", "everyone": "EPERM", "parent": "EPERM", "pidfd": "EPERM",
        "child": "EPERM", "thread": "EPERM",
    }  # fmt: skip


ORDINARY = """
import asyncio, mmap, multiprocessing, shutil, subprocess, tempfile, threading
from concurrent.futures import ThreadPoolExecutor

def square(x):
    return x * x

async def both():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return [int(said), await asyncio.to_thread(square, 3)]

with tempfile.TemporaryDirectory() as folder:
    tree = Path(folder, "tree"); tree.joinpath("deep").mkdir(parents=True)
    tree.joinpath("deep", "file").write_bytes(b"0123456789"); tree.joinpath("link").symlink_to("deep/file")
    shutil.copytree(tree, Path(folder, "copy"), symlinks=True)
    with open(Path(folder, "copy", "link"), "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"X"; view.flush()
    os.replace(Path(folder, "copy", "deep", "file"), Path(folder, "moved"))
    content = Path(folder, "moved").read_text()
with multiprocessing.get_context("fork").Pool(2) as pool:
    pooled = pool.map(square, range(4))
    pool.close(); pool.join()
with ThreadPoolExecutor(2) as threads:
    threaded = list(threads.map(square, range(4)))
memory = os.memfd_create("x"); os.ftruncate(memory, 10)
tell(content=content, pooled=pooled, threaded=threaded, both=asyncio.run(both()),
     shell=subprocess.run("echo hello | cat", shell=True, capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize("variant", VARIANTS)
def test_ordinary_work_goes_on(variant: str) -> None:
    answers = told(under(variant) + ORDINARY)
    assert answers == {
        "content": "X123456789", "pooled": [0, 1, 4, 9], "threaded": [0, 1, 4, 9], "both": [42, 9], "shell": "hello\n",
    }  # fmt: skip


def test_threads_that_were_there_before_are_under_the_filter_too() -> None:
    answers = told(
        """
import queue, threading
asked, answered = queue.Queue(), queue.Queue()
def serve():
    while asked.get():
        answered.put(attempt(socket.socket))
thread = threading.Thread(target=serve); thread.start()
asked.put(True); before = answered.get()
"""
        + under(LANDLOCK)
        + """
asked.put(True); after = answered.get(); asked.put(False); thread.join()
tell(before=before, after=after, no_new_privileges="NoNewPrivs:\\t1" in Path("/proc/self/status").read_text())
"""
    )
    assert answers == {"before": "done", "after": "EPERM", "no_new_privileges": True}


def test_a_thread_with_a_filter_of_its_own_leaves_all_without_the_new_one() -> None:
    """All threads or none: one that can't be brought along is named."""
    answers = told(
        """
import threading
filter = seccomp.build_filter(platform.machine(), namespaces=True)
apart, over = threading.Event(), threading.Event()
def stand_apart():
    seccomp._SECCOMP_FILTER_FLAG_TSYNC = 0
    seccomp.install(filter)
    seccomp._SECCOMP_FILTER_FLAG_TSYNC = 1
    apart.set(); over.wait()
thread = threading.Thread(target=stand_apart); thread.start(); apart.wait()
try:
    seccomp.install(seccomp.build_filter(platform.machine(), namespaces=False))
    said = "done"
except OSError as error:
    said = str(error)
over.set(); thread.join()
tell(said=said, still=attempt(socket.socket), native=str(thread.native_id))
"""
    )
    assert f"thread {answers['native']} " in answers["said"]
    assert answers["still"] == "done"


def test_a_program_that_the_kernel_does_not_take_is_an_error() -> None:
    status, _, err = run("seccomp.install(bytes(8))")
    assert status == 1
    assert "OSError: [Errno 22] seccomp: Invalid argument" in err


def test_a_filter_outlives_the_program_that_installed_it() -> None:
    code = (
        under(LANDLOCK)
        + """
program = "import socket\\ntry: socket.socket()\\nexcept OSError as error: print(error.errno)"
os.execv(sys.executable, [sys.executable, "-c", program])
"""
    )
    assert run(code) == (0, "1\n", "")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and int 0x80 are of x86_64")
@pytest.mark.parametrize(
    "way",
    [
        "MINE.update(x32=0x40000000 + 39)\nsystem.call('x32')",
        # mov eax, 20 (getpid); int 0x80; ret
        "import mmap\ncode = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
    ],
    ids=["x32", "i386"],
)
def test_the_other_abis_of_the_processor_kill(way: str) -> None:
    assert run(under(NAMESPACES) + way)[0] == -signal.SIGSYS


@pytest.mark.slow
def test_torch_trains() -> None:
    """Under the filter from before its import; under the strictest one it does in test_landlock.py."""
    answers = told(
        under(NAMESPACES)
        + """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
x, y = torch.randn(256, 32), torch.randn(256, 1)
losses = []
for _ in range(5):
    optimizer.zero_grad(); loss = torch.nn.functional.mse_loss(model(x), y); loss.backward(); optimizer.step()
    losses.append(loss.item())
tell(better=losses[-1] < losses[0])
"""
    )
    assert answers == {"better": True}
