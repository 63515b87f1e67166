"""``uv.lock``, ``pylock.toml`` and requirements become the same lock, and what volunteers can't install is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_client.sdk.lock_files import reading
from farm_client.sdk.lock_files.reading import lock_blob, lock_of_file
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask
from protocol.locks import Pin, read_lock

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
ROOT = """version = 1
requires-python = ">=3.11"

[[package]]
name = "mine"
version = "0.1"
source = { virtual = "." }
dependencies = [{ name = "one" }, { name = "two", marker = "sys_platform == 'linux'", extra = ["fast"] }]
[package.optional-dependencies]
never = [{ name = "unwanted" }]
[package.dev-dependencies]
dev = [{ name = "unwanted" }]

[[package]]
name = "unwanted"
version = "1"
source = { git = "https://example.org/unwanted.git" }
"""


def entry(name: str, digest: str, more: str = "", source: str = 'registry = "https://example.org/simple"') -> str:
    wheels = f'wheels = [{{ url = "https://example.org/x.whl", hash = "{digest}", size = 1 }}]' if digest else ""
    return f'\n[[package]]\nname = "{name}"\nversion = "1.0"\nsource = {{ {source} }}\n{wheels}\n{more}\n'


UV_LOCK = (
    ROOT
    + entry("one", A, 'dependencies = [{ name = "three", marker = "os_name == \'nt\'" }]')
    + entry("two", B, '[package.optional-dependencies]\nfast = [{ name = "three" }]')
    + entry("three", C, 'dependencies = [{ name = "one" }]')
)
PYLOCK = f"""lock-version = "1.0"
created-by = "hand"

[[packages]]
name = "one"
version = "1.0"
wheels = [{{ url = "https://example.org/one-1.0-py3-none-any.whl", hashes = {{ sha256 = "{A[7:]}", md5 = "x" }} }}]

[[packages]]
name = "two"
version = "1.0"
marker = "sys_platform == 'linux'"
wheels = [{{ url = "https://example.org/two-1.0-py3-none-any.whl", hashes = {{ sha256 = "{B[7:]}" }} }}]
"""


def lock(folder: Path, name: str, text: str) -> tuple[Pin, ...]:
    path = folder / name
    path.write_text(text)
    return read_lock(lock_of_file(path))


def test_a_uv_lock_is_what_its_project_depends_on_and_where(tmp_path: Path) -> None:
    linux, windows = 'sys_platform == "linux"', 'os_name == "nt"'
    assert lock(tmp_path, "uv.lock", UV_LOCK) == (
        Pin("one", "1.0", "", (A,)),
        Pin("three", "1.0", f"{windows} or {linux}", (C,)),
        Pin("two", "1.0", linux, (B,)),
    )


def test_ways_in_a_row_must_all_hold(tmp_path: Path) -> None:
    text = ROOT + entry("one", A) + entry("two", B, 'dependencies = [{ name = "three", marker = "os_name == \'nt\'" }]')
    three = next(pin for pin in lock(tmp_path, "uv.lock", text + entry("three", C)) if pin.name == "three")
    assert three.marker == 'os_name == "nt" and sys_platform == "linux"'


def test_of_two_versions_the_edge_names_one(tmp_path: Path) -> None:
    root = ROOT.replace('{ name = "one" }', '{ name = "one", version = "2.0" }')
    newer = entry("one", C).replace('"1.0"', '"2.0"')
    pins = lock(tmp_path, "uv.lock", root + entry("one", A) + newer + entry("two", B))
    assert [(pin.name, pin.version) for pin in pins] == [("one", "2.0"), ("two", "1.0")]


def test_a_pylock_gives_the_hashes_of_its_wheels(tmp_path: Path) -> None:
    assert lock(tmp_path, "pylock.toml", PYLOCK) == (
        Pin("one", "1.0", "", (A,)),
        Pin("two", "1.0", 'sys_platform == "linux"', (B,)),
    )


def test_the_same_pins_make_the_same_environment_whatever_tool_wrote_them(tmp_path: Path) -> None:
    names = (("requirements.txt", f"two==1.0 ; sys_platform=='linux' --hash={B}\none==1.0 --hash={A}\n"),)
    for name, text in (*names, ("pylock.toml", PYLOCK), ("uv.lock", ROOT + entry("one", A) + entry("two", B))):
        (tmp_path / name).write_text(text)
    (tmp_path / "requirements.lock").write_bytes((tmp_path / "requirements.txt").read_bytes())
    whichever = ("requirements.txt", "requirements.lock", "pylock.toml", "uv.lock")
    locks = {lock_of_file(tmp_path / name) for name in whichever}
    assert len(locks) == 1
    ref, files = lock_blob(tmp_path / "uv.lock")
    assert ref is not None
    assert files == {ref.digest: locks.pop()}
    assert ref.digest == digest_bytes(files[ref.digest])
    assert ref.size_bytes == len(files[ref.digest])
    assert lock_blob(None) == (None, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version = 2\n", "is version 2 of uv's lock"),
        ("version = 1\n", "no project at its root"),
        ("version = 1\npackage = 3\n", "package is no list of tables"),
        ("version = ", "it is not TOML"),
        (ROOT, "line 4: it depends on 'one', which the file does not have"),
        (ROOT + entry("one", "") + entry("two", B), "line 19: one has no wheel"),
        (ROOT + entry("one", A) + entry("two", "bad"), "line 26: two: 'bad' is no hash that counts"),
        (ROOT + entry("one", A) + entry("two", B, source='git = "x"'), "line 26: two is of source 'git'"),
        (ROOT + entry("one", A, source='url = "x"') + entry("two", B), "one is of source 'url'"),
        (ROOT + entry("one", A, source='path = "x"') + entry("two", B), "one is of source 'path'"),
        (ROOT + entry("one", A, source='editable = "x"') + entry("two", B), "one is of source 'editable'"),
    ],
)
def test_what_a_uv_lock_must_not_ask_for_is_named_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidTask) as told:
        lock(tmp_path, "uv.lock", text)
    assert told.value.message.startswith(f"--requirements {tmp_path / 'uv.lock'}: ")
    assert why in told.value.message


def test_markers_that_nobody_could_follow_are_refused(tmp_path: Path) -> None:
    edges = ", ".join(f"{{ name = 'two', marker = \"python_version == '3.{n}'\" }}" for n in range(65))
    with pytest.raises(InvalidTask, match="markers are too many to be followed"):
        lock(tmp_path, "uv.lock", ROOT + entry("one", A, f"dependencies = [{edges}]") + entry("two", B))


WHEEL = f'wheels = [{{ url = "https://example.org/a-1-py3-none-any.whl", hashes = {{ sha256 = "{A[7:]}" }} }}]'
HEAD = 'lock-version = "1.0"\ncreated-by = "hand"\n[[packages]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('lock-version = "9.0"\ncreated-by = "hand"\npackages = []', "a version of PEP 751 that is not known"),
        ('lock-version = "1.0"\n', "created-by"),
        ("packages = ", "it is not TOML"),
        (HEAD, "line 3: "),
        (HEAD + WHEEL, "line 3: a is not pinned to a version"),
        (HEAD + f'version = "1"\nmarker = "\'x\' in extras"\n{WHEEL}', "a is needed for some extras only"),
        (
            HEAD + 'version = "1"\nwheels = []\n[packages.sdist]\npath = "a-1.tar.gz"\nhashes = { sha256 = "x" }',
            "no wheel",
        ),
        (HEAD + '[packages.directory]\npath = "."', "line 3: a is a folder of yours"),
        (HEAD + '[packages.vcs]\ntype = "git"\nurl = "x"\ncommit-id = "1"', "a is taken from an address"),
        (HEAD + f'[packages.archive]\nurl = "x"\nhashes = {{ sha256 = "{A[7:]}" }}', "a is taken from an address"),
        (HEAD + f'version = "1"\n{WHEEL.replace("sha256", "md5")}', "line 3: a has no --hash"),
    ],
)
def test_what_a_pylock_must_not_ask_for_is_named_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InvalidTask) as told:
        lock(tmp_path, "pylock.toml", text)
    assert why in told.value.message


def test_files_that_are_none_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidTask, match="there is no such file"):
        lock_of_file(tmp_path / "uv.lock")
    with pytest.raises(InvalidTask, match="pins nothing: run `uv lock`"):
        lock(tmp_path, "pyproject.toml", "[project]\n")
    (tmp_path / "uv.lock").write_bytes(b"\xff")
    with pytest.raises(InvalidTask, match="it is no text"):
        lock_of_file(tmp_path / "uv.lock")
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 0)
    with pytest.raises(InvalidTask, match="at most 0 B are allowed"):
        lock_of_file(tmp_path / "uv.lock")
    monkeypatch.undo()

    def fail(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InvalidTask, match="it can't be read: Permission denied"):
        lock_of_file(tmp_path / "uv.lock")
