"""Landlock at work: what is outside the rules is out of reach, and a rule that can't hold is an error."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farm_client.sandbox import landlock
from farm_client.sandbox.errors import SandboxUnavailable
from tests.farm_client.sandbox.confined import start, told

needs_landlock = pytest.mark.skipif(
    landlock.abi() < landlock.MIN_ABI, reason="this kernel has no Landlock, or an old one"
)


def needs_abi(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(landlock.abi() < version, reason=f"this kernel's Landlock is older than ABI {version}")


RESTRICT = """
import fcntl, stat, struct, subprocess, threading  # while they can be read
a, b, kept, outside = map(Path, sys.argv[1:5])
more = landlock.Rules()
{before}
landlock.restrict(landlock.Rules(read=(kept,), write=(a, b)) | more)
"""


@dataclass(frozen=True)
class Folders:
    """Two folders to write, one to read, one outside the rules; a file ``file`` in each, and links to the last."""

    root: Path

    def told(self, code: str, *arguments: object, before: str = "", **options: object) -> dict[str, object]:
        """Run code that is kept to the folders."""
        names = [self.root / name for name in ("a", "b", "kept", "outside")]
        return told(RESTRICT.format(before=before) + code, *names, *arguments, **options)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("a", "b", "kept", "outside"):
        tmp_path.joinpath(name).mkdir()
        tmp_path.joinpath(name, "file").write_text(name)
    tmp_path.joinpath("a", "link").symlink_to("../outside/file")
    tmp_path.joinpath("a", "hard").hardlink_to(tmp_path / "outside" / "file")
    return Folders(tmp_path)


@needs_landlock
def test_files_outside_are_out_of_reach_and_inside_they_are_not(folders: Folders) -> None:
    """By name, through .., through links, by cutting them to nothing; a folder to read is no folder to write."""
    answers = folders.told(
        """
tell(
    read=attempt(outside.joinpath("file").read_text), up=attempt((a / ".." / "outside" / "file").read_text),
    link=attempt((a / "link").read_text), root=attempt(Path("/proc/self/root", *outside.parts[1:], "file").read_text),
    list=attempt(os.listdir, outside), write=attempt((outside / "new").write_text, "x"),
    truncate=attempt(os.truncate, outside / "file", 0), remove=attempt((outside / "file").unlink),
    make=attempt((outside / "d").mkdir), passwords=attempt(Path("/etc/passwd").read_text),
    kept=(kept / "file").read_text(), kept_write=attempt((kept / "file").write_text, "x"),
    kept_truncate=attempt(os.truncate, kept / "file", 0), kept_make=attempt((kept / "d").mkdir),
    own=(a / "file").read_text(), own_write=attempt((a / "file").write_text, "x"),
    own_truncate=attempt(os.truncate, a / "file", 0), own_make=attempt((a / "d").mkdir),
    own_remove=attempt((a / "d").rmdir), own_symlink=attempt((a / "s").symlink_to, "x"),
    own_fifo=attempt(os.mkfifo, a / "fifo"),
)
"""
    )
    refused = ["read", "up", "link", "root", "list", "write", "truncate", "remove", "make", "passwords", "kept_write",
               "kept_truncate", "kept_make"]  # fmt: skip
    done = ["own_write", "own_truncate", "own_make", "own_remove", "own_symlink", "own_fifo"]
    expected = dict.fromkeys(refused, "EACCES") | dict.fromkeys(done, "done") | {"kept": "kept", "own": "a"}
    assert answers == expected
    assert folders.root.joinpath("outside", "file").read_text() == "outside"


@needs_landlock
def test_files_move_between_folders_that_are_written_and_into_no_other(folders: Folders) -> None:
    """A hard link that was there before is a file of its folder; a new one to a file outside can't be made."""
    answers = folders.told(
        """
tell(
    across=attempt(os.rename, a / "file", b / "moved"), linked=attempt(os.link, b / "moved", a / "again"),
    out=attempt(os.rename, b / "moved", kept / "moved"), taken=attempt(os.rename, kept / "file", a / "taken"),
    new_hard_link=attempt(os.link, kept / "file", a / "stolen"),
    outside=attempt(os.link, outside / "file", a / "stolen"),
    hard=(a / "hard").read_text(),
)
"""
    )
    assert answers.pop("outside") in {"EACCES", "EXDEV"}
    assert answers.pop("out") in {"EACCES", "EXDEV"}
    assert answers.pop("taken") in {"EACCES", "EXDEV"}
    assert answers.pop("new_hard_link") in {"EACCES", "EXDEV"}
    assert answers == {"across": "done", "linked": "done", "hard": "outside"}


@needs_landlock
def test_a_device_node_is_not_made_and_one_that_is_given_is_used(folders: Folders) -> None:
    answers = folders.told(
        """
null = os.open("/dev/null", os.O_RDWR)
tell(
    made=attempt(os.mknod, a / "node", 0o600 | stat.S_IFBLK, os.makedev(1, 0)),
    zero=attempt(os.open, "/dev/zero", os.O_RDONLY), written=os.write(null, b"x"),
    commanded=make("ioctl", null, 0x5401, -1),
)
""",
        before="more = landlock.Rules(devices=(Path('/dev/null'),))",
    )
    assert answers == {"made": "EACCES", "zero": "EACCES", "written": 1, "commanded": "ENOTTY"}


@needs_landlock
def test_what_is_open_stays_open_and_what_is_started_is_confined_too(folders: Folders) -> None:
    with folders.root.joinpath("outside", "file").open() as file:
        answers = folders.told(
            """
held = int(sys.argv[5])
child = os.fork()
if not child:
    os._exit(attempt((outside / "file").read_text) == "EACCES")
forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
cat = subprocess.run(["/bin/cat", outside / "file"], capture_output=True, text=True)
tell(held=os.read(held, 99).decode(), forked=forked, cat=cat.stderr.rpartition(": ")[2].strip(),
     reopened=attempt(os.open, f"/proc/self/fd/{held}", os.O_RDONLY))
""",
            file.fileno(),
            before="more = landlock.Rules(read=tuple(filter(Path.exists, map(Path, '/usr /bin /lib /lib64'.split()))))",
            pass_fds=(file.fileno(),),
        )
    assert answers == {"held": "outside", "forked": 1, "cat": "Permission denied", "reopened": "EACCES"}


@needs_abi(4)
def test_tcp_is_refused_to_a_socket_that_was_there_before(folders: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers = folders.told(
            """
server = ("127.0.0.1", int(sys.argv[5]))
tell(connect=attempt(first.connect, server), bind=attempt(second.bind, ("127.0.0.1", 0)))
""",
            server.getsockname()[1],
            before="first, second = socket.socket(), socket.socket()",
        )
    assert answers == {"connect": "EACCES", "bind": "EACCES"}


@needs_abi(6)
def test_signals_and_abstract_sockets_reach_nobody_outside(folders: Folders) -> None:
    name = f"aifarm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        answers = folders.told(
            """
child = os.fork()
if not child:
    os.read(0, 1)
    os._exit(0)
tell(
    parent=attempt(os.kill, os.getppid(), 0), child=attempt(os.kill, child, signal.SIGKILL),
    abstract=attempt(socket.socket(socket.AF_UNIX).connect, "\\0" + sys.argv[5]),
)
""",
            name,
        )
    assert answers == {"parent": "EPERM", "child": "done", "abstract": "EPERM"}


PEEK = """
target = int(sys.argv[5]); folder = Path("/proc", sys.argv[5])
buffer = ctypes.create_string_buffer(8)
pieces = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), 8))
# Privileges would open what is guarded: CAP_PERFMON and CAP_DAC_READ_SEARCH do.
attempt(os.setgroups, []); attempt(os.setgid, 65534); attempt(os.setuid, 65534)
tell(
    **{name: attempt((folder / name).read_bytes) for name in ("status", "cmdline", "environ", "maps")},
    mem=attempt(os.open, folder / "mem", os.O_RDONLY), fd=attempt(os.readlink, folder / "fd" / "0"),
    exe=attempt(os.readlink, folder / "exe"),
    trace=make("ptrace", 0x4206, target, 0, 0), memory=make("process_vm_readv", target, pieces, 1, pieces, 1, 0),
)
"""
INSIDES = frozenset({"environ", "maps", "mem", "fd", "exe", "trace", "memory"})


@pytest.fixture
def their_pid() -> Iterator[int]:
    """Another process of the same user: of nobody, where the tests are root's."""
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        other = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, **nobody)
    except OSError:  # who is not root can't become nobody, here as in the code above
        other = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    with other:
        yield other.pid


@needs_landlock
def test_other_processes_are_hidden_and_their_insides_guarded_where_proc_is_open(
    folders: Folders, their_pid: int
) -> None:
    """With ``proc_rules`` nothing of them is seen; with all of /proc, what ptrace guards is not."""
    hidden = folders.told(PEEK, their_pid, before="more = landlock.proc_rules(os.getpid())")
    assert {hidden.pop("status"), hidden.pop("cmdline")} == {"EACCES"}
    open_proc = folders.told(PEEK, their_pid, before="more = landlock.Rules(read=(Path('/proc'),))")
    assert {open_proc.pop("status"), open_proc.pop("cmdline")} == {"done"}
    for answers in (hidden, open_proc):
        assert answers.keys() == INSIDES
        assert set(answers.values()) <= {"EACCES", "EPERM"}
    free = told("import struct\n" + PEEK, 1, 2, 3, 4, their_pid)
    assert {free[name] for name in ("environ", "maps", "fd", "exe")} == {"done"}, "so it was Landlock that refused"


PROC = """
def name_myself():
    comm = Path("/proc/self/task", str(threading.get_native_id()), "comm")
    comm.write_text("cuda-like")
    names.append(comm.read_text().strip())
def look():
    thread = threading.Thread(target=name_myself); thread.start(); thread.join()
    return dict(
        maps=attempt(Path("/proc/self/maps").read_text), mounts=attempt(Path("/proc/mounts").read_text),
        memory=attempt(Path("/proc/meminfo").read_text),
        score=attempt(Path("/proc/self/oom_score_adj").write_text, "0"),
        uptime=attempt(Path("/proc/uptime").read_text), listing=attempt(os.listdir, "/proc"),
    )
names = []
first = look()
"""
LOOKS = {
    "maps": "done", "mounts": "done", "memory": "done", "score": "EACCES", "uptime": "EACCES", "listing": "EACCES",
}  # fmt: skip


@needs_landlock
def test_a_process_reads_its_own_proc_and_names_its_threads(folders: Folders) -> None:
    answers = folders.told(PROC + "tell(names=names, **first)", before="more = landlock.proc_rules(os.getpid())")
    assert answers == LOOKS | {"names": ["cuda-like"]}


@needs_landlock
@pytest.mark.skipif(
    not os.access("/proc/sys/vm/drop_caches", os.W_OK), reason="only root may have the kernel drop paths"
)
def test_proc_stays_open_when_the_kernel_has_dropped_its_paths(folders: Folders) -> None:
    """As it does for want of memory; procfs then makes new inodes, which are under no rule."""
    names = [folders.root / name for name in ("a", "b", "kept", "outside")]
    code = RESTRICT.format(before="more = landlock.proc_rules(os.getpid())") + PROC
    process = start(code + "print(flush=True); sys.stdin.readline(); tell(names=names, **look())", *names)
    assert process.stdout is not None
    process.stdout.readline()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    out, err = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == LOOKS | {"names": ["cuda-like"] * 2}


@needs_landlock
@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("read=(a / 'missing',)", r"Landlock takes no rule for \S+/a/missing: No such file or directory"),
        ("write=(a / 'link',)", r"Landlock takes no rule for \S+/a/link: it is a symbolic link"),
        ("devices=(a,)", r"Landlock takes no rule for \S+/a: it is no device"),
    ],
)
def test_a_rule_that_cannot_be_added_is_an_error_and_all_is_as_before(folders: Folders, rules: str, says: str) -> None:
    answers = told(
        f"""
a, outside = Path(sys.argv[1], "a"), Path(sys.argv[1], "outside")
try:
    landlock.restrict(landlock.Rules({rules}))
    said = "done"
except landlock.SandboxUnavailable as error:
    said = error.message
tell(said=said, outside=(outside / "file").read_text())
""",
        folders.root,
    )
    assert re.match(says, str(answers["said"]))
    assert answers["outside"] == "outside"


@needs_landlock
def test_a_process_with_threads_is_not_confined_in_part() -> None:
    answers = told(
        """
import threading
over = threading.Event(); thread = threading.Thread(target=over.wait); thread.start()
try:
    landlock.restrict(landlock.Rules())
    said = "done"
except landlock.SandboxUnavailable as error:
    said = error.message
over.set(); thread.join()
tell(said=said)
"""
    )
    assert answers == {"said": "Landlock confines one thread, and this process has 2: confine it first"}


@needs_landlock
@pytest.mark.parametrize(
    ("version", "files", "network", "scopes"),
    [(3, 0x7FFF, 0, 0), (4, 0x7FFF, 3, 0), (5, 0xFFFF, 3, 0), (6, 0xFFFF, 3, 3), (7, 0xFFFF, 3, 3), (99, 0xFFFF, 3, 3)],
)
def test_each_abi_is_asked_for_all_that_it_governs(version: int, files: int, network: int, scopes: int) -> None:
    """And a rule grants no right that is not governed, nor one of folders to a file: the kernel would refuse it."""
    answers = told(
        """
calls = []
def kernel(name, *arguments):
    if name == "landlock_create_ruleset":
        if arguments[0] is None:
            return int(sys.argv[1])
        tell_of = arguments[0]
        calls.append([tell_of.fs, tell_of.net, tell_of.scoped, arguments[1]])
        return os.dup(0)
    if name == "landlock_add_rule":
        calls.append(arguments[2].allowed)
    return 0
system.call = kernel
landlock.restrict(landlock.Rules(
    read=(Path("/usr"), Path(sys.executable)), write=(Path("/tmp"), Path(sys.executable).resolve()),
    edit=(Path("/tmp"),), devices=(Path("/dev/null"),),
))
tell(calls=calls)
""",
        version,
    )
    ruleset, read_folder, read_file, write_folder, write_file, edit_folder, device = answers["calls"]
    assert ruleset == [files, network, scopes, 24]
    assert (read_folder, read_file, edit_folder) == (0xD, 0x5, 0x400E)
    assert write_folder == files & ~(1 << 6 | 1 << 11)  # all but device nodes
    assert write_file == files & 0xC007
    assert device == files & 0x8006


@needs_landlock
@pytest.mark.slow
def test_torch_trains_where_it_may_read_only_itself_and_the_system(folders: Folders) -> None:
    """Beside the strictest filter of system calls, with threads of torch's own."""
    answers = folders.told(
        """
seccomp.install(seccomp.build_filter(platform.machine(), namespaces=False))
os.environ.update(TMPDIR=str(a), USER="nobody")  # where torch makes its compiler's cache; /etc/passwd is closed
import torch
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
x, y = torch.randn(512, 256), torch.randn(512, 1)
losses = []
for _ in range(5):
    optimizer.zero_grad(); loss = torch.nn.functional.mse_loss(model(x), y); loss.backward(); optimizer.step()
    losses.append(loss.item())
torch.save(model.state_dict(), a / "model")
tell(better=losses[-1] < losses[0], outside=attempt(torch.load, outside / "file"),
     saved=len(torch.load(a / "model", weights_only=True)))
""",
        before="""
paths = [Path(p) for p in (*sys.path, sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache") if p]
paths += [Path(p).resolve() for p in sys.path]  # where the packages are links, also where they lead
for p in Path(sys.prefix).glob("lib/python*/site-packages/torch/__init__.py"):
    paths.append(p.resolve().parents[1])
more = landlock.Rules(read=tuple(p for p in paths if p.exists()), devices=(Path("/dev/null"), Path("/dev/urandom")))
more |= landlock.proc_rules(os.getpid())
""",
    )
    assert answers == {"better": True, "outside": "EACCES", "saved": 4}


@pytest.mark.parametrize(("version", "found"), [(0, "there is none"), (2, "its ABI is 2")])
def test_a_kernel_that_confines_too_little_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: int, found: str
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: version)
    with pytest.raises(SandboxUnavailable, match=f"from ABI 3 on .Linux 6.2., and {found} on this kernel"):
        landlock.restrict(landlock.Rules())


def test_there_is_no_abi_where_there_is_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landlock.abi() == 0
