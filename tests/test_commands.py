"""Every command that a page shows is run on loopback as it stands there, or is named here with the reason why not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("deploy/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("farm_client/templates/*.md"),
    ]
)
PROGRAMS = frozenset(
    {*"farm farm-server farm-client make pip python python3 docker systemctl".split()}  # noqa: SIM905
    | {*"journalctl cp install mv export source PIP_EXTRA_INDEX_URL".split()}  # noqa: SIM905
)
OURS = {"farm": "farm_client.cli.app", "farm-server": "farm_server", "farm-client": "farm_client"}

STORY = {
    "README.md": [
        "farm-server up",
        "farm-server status",
        "farm-client join ws://TOKEN@farm.example.org:8470",
        "export FARM_URL=http://TOKEN@farm.example.org:8470",
        "farm init my-task",
        "farm submit my-task/train.py --data my-task/data.npz --holdout 0.2 --epochs 5 --watch",
        "farm pull TASK -o model.safetensors",
    ],
    "farm_client/templates/README.md": [
        "farm login http://TOKEN@host:8470",
        "farm submit . --watch",
        "farm pull spirals -o model.safetensors",
    ],
    "examples/digits/README.md": ["farm submit examples/digits --watch"],
    "docs/recovery.md": [
        "farm-server doctor --data-dir DIR",
        "farm-server backup COPY --data-dir DIR",
        "farm-server restore COPY --data-dir NEW",
    ],
}
"""What is run, in this order, on one farm. The first two run in the background until the end."""

NOT_RUN = {
    r"make (demo|test|lint|faults|benchmark-tests|coverage).*": "are the suites themselves, and the demo is one",
    r"make simulate.*": "is a suite too",
    r"python -m (benchmarks|tests\.simulation) .*": "take minutes; tests/benchmarks and tests/simulation run them",
    r"docker .*": "needs a container engine; tests/test_deploy.py compares what it names",
    r"(systemctl|journalctl) .*": "needs systemd; tests/test_deploy.py parses the units",
    r"(install|cp deploy).*": "writes to the system's folders, or beside the compose file",
    r".*pip (install|wheel) .*": "installs from a registry; tests/test_packaging.py builds the wheel",
    r"python3 -m venv .*": "makes an environment outside of the test's folder",
    r"\{ head -1 constraints.*": "makes the pins anew",
    r"mv /tmp/constraints\.txt .*": "replaces the pins",
    r"PIP_EXTRA_INDEX_URL=.*": "is a suite itself",
    r"source \.venv/bin/activate": "is for a person's shell",
    r"farm-client (set|pause|resume|finish|logs).*": "tests/farm_client/agent/owner/test_commands.py runs them",
    r"farm-client doctor.*": "is run by tests/farm_client/agent/test_cli.py",
    r"~/aifarm/bin/farm-client join .*": "is the README's join line at another place",
    r"farm-client join( wss.*)?": "needs a last join, or TLS; see tests/farm_client/agent/test_cli.py",
    r"farm-client environments (list|clear \[DIGEST\])": "has tests of its own: agent/work/test_environments.py",
    r"farm-client cache (show|clear \[TASK\])": "has a test of its own: test_cache_commands.py",
    r"farm-client join --team reds": "is the README's join line, with a team; agent/test_lifecycle.py",
    r"farm leaderboard.*": "tests/farm_client/cli/test_leaderboard.py asks, tests/farm_server/clients answers",
    r"(farm|farm-client) certificate .*": "tests/farm_client/cli/test_certificate.py, and the agent's beside it",
    r"farm-client escape-test": "runs for half a minute; tests/farm_client/agent/test_escape_test.py, tests/sandbox",
    r"farm-client update --check": "asks a registry; tests/farm_client/agent/test_updating.py has an index of its own",
    r"farm-client service .*": "starts a service; tests/farm_client/agent/service has a stand-in for systemd",
    r"farm (recipes.*|submit train\.py --recipe .*)": "tests/farm_client/cli/test_recipes.py, sdk/test_data_split.py",
    r"farm sweep .*": "trains many tasks; tests/farm_client/cli/test_sweep.py, sdk/sweeping",
    r"farm (demo|run .*)": "starts a farm of its own; tests/e2e/test_demo.py does",
    r"python examples/\w+/plain\.py .*": "trains for a minute; test_public_models.py does in small",
    r"python examples/lora/make\.py .*": "makes what the lora example begins with; test_lora_example.py does",
    r"farm map examples/pi/estimate\.py .*": "tests/e2e/test_map.py maps it",
    r"farm submit .*--order sequential": "needs a corpus; tests/e2e/test_sequential_order.py has one",
    r"farm submit .*--base .*": "needs a snapshot of a model; test_lora_example.py makes one",
    r"farm pull .* --format hf .*": "needs a trained transformers model; tests/farm_client/cli/test_pull_folder.py",
    r"farm pull .* --format onnx .*": "runs the exporter, for seconds; test_onnx_export.py does",
    r"farm pull .* --failed .*": "needs a task whose code raised; tests/e2e/test_bad_input.py has one",
    r"farm artefacts .*": "needs a task with on_epoch_end; tests/farm_client/cli/test_artefacts.py",
    r"farm submit .*(charlm|codec int8|--set lr).*": "trains for minutes; its options are parsed by tests",
    r"farm-server doctor .* --repair": "is for a damaged folder; tests/farm_server/operations/test_damage.py",
    r"farm-server (backup|restore) /backups/monday .*": "is the recovery page's line with an operator's own paths",
    r'cp "\$\(python -c .*': "makes the text of the charlm example",
}


def commands_of(page: Path) -> list[str]:
    """Return the command lines of a page's indented and shell blocks, their comments left out."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [line[4:] for line in prose.splitlines() if line.startswith("    ")]
    stripped = (re.split(r"\s+#\s|\s{3,}", line.strip().removeprefix("$ "))[0] for line in lines)
    return [line for line in stripped if re.split(r"[ =]", line)[0].rsplit("/", 1)[-1] in PROGRAMS or "pip " in line]


def test_every_command_is_run_or_has_its_reason() -> None:
    shown = {str(page.relative_to(ROOT)): commands_of(page) for page in PAGES}
    told = {
        (page, line)
        for page, lines in shown.items()
        for line in lines
        if line not in STORY.get(page, ()) and not any(re.fullmatch(pattern, line) for pattern in NOT_RUN)
    }
    assert told == set()
    for page, lines in STORY.items():
        assert set(lines) <= set(shown[page]), page


def test_no_reason_outlives_its_command() -> None:
    lines = [line for page in PAGES for line in commands_of(page)]
    assert {pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in lines)} == set()


class Shell:
    """Runs lines as a person's shell would, in a folder of its own, with this checkout's programs on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, module in OURS.items():
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            path.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.environ = kept | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "FARM_CONFIG": str(folder / "config.toml"),
            "FARM_SERVER_DATA_DIR": str(folder / "server"),
            "FARM_SERVER_HOST": "127.0.0.1",
            "FARM_SERVER_PORT": "0",
            "FARM_CLIENT_HOME": str(folder / "client"),
            "FARM_CLIENT_CPU_CORES": "1",
        }
        self.meaning: dict[str, str] = {}
        self._background: list[subprocess.Popen[str]] = []

    def _meant(self, line: str) -> str:
        for name, meaning in self.meaning.items():
            line = line.replace(name, meaning)
        return line

    def run(self, line: str, folder: Path | None = None) -> str:
        """Run a line to its end, and return what it printed on stdout."""
        done = subprocess.run(
            ["bash", "-c", self._meant(line)],
            cwd=folder or self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, line: str) -> subprocess.Popen[str]:
        """Run a line in the background, until the end."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._meant(line)}"],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log").open("a"),
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._background.append(process)
        return process

    def end(self) -> None:
        """End what runs in the background, the last first."""
        for process in reversed(self._background):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.end()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_pages_tell_a_story_that_happens(shell: Shell) -> None:
    up, status, join, _export, init, submit, pull = STORY["README.md"]
    server = shell.start(up)
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if "FARM_URL" in line:
            break
    addresses = dict(re.findall(r"(join|FARM_URL)[ =](\S+)", said))
    shell.meaning = {
        "ws://TOKEN@farm.example.org:8470": addresses["join"],
        "http://TOKEN@host:8470": addresses["FARM_URL"],
        "TASK": "train",
        "DIR": str(shell.folder / "server"),
        "COPY": str(shell.folder / "copy"),
        "NEW": str(shell.folder / "new"),
    }
    shell.run(status)
    shell.start(join)
    shell.environ["FARM_URL"] = addresses["FARM_URL"]
    shell.run(init)
    task = shell.run(submit).splitlines()[0]
    shell.meaning["TASK"] = task.split()[-1]
    shell.run(pull)
    assert (shell.folder / "model.safetensors").stat().st_size > 0
    login, submit_here, pull_spirals = STORY["farm_client/templates/README.md"]
    shell.run(login)
    del shell.environ["FARM_URL"]
    shell.run(submit_here, shell.folder / "my-task")
    shell.run(pull_spirals)
    shutil.copytree(ROOT / "examples", shell.folder / "examples")
    (digits,) = STORY["examples/digits/README.md"]
    assert "completed" in shell.run(digits)
    for line in STORY["docs/recovery.md"]:
        shell.run(line)
