"""Docs that cannot lie: what can be compared with the code is compared with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")], key=lambda p: p.relative_to(ROOT)
)


def generator_of_states():
    spec = importlib.util.spec_from_file_location("generate_states", ROOT / "docs" / "generate_states.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_states_is_drawn_from_the_tables():
    states = generator_of_states()
    assert states.PAGE.read_text(encoding="utf-8") == states.render(), "run `make states`"


def test_every_state_has_a_meaning():
    states = generator_of_states()
    assert set(states.TASK_MEANINGS) == set(states.TaskState)
    assert set(states.ASSIGNMENT_MEANINGS) == set(states.AssignmentState)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


CODE = {
    str(path.relative_to(ROOT))
    for package in (
        "protocol",
        "coordinator",
        "storage",
        "farm_server",
        "farm_client",
        "benchmarks",
        "docs",
        "tests",
        "examples",
    )
    for path in (ROOT / package).rglob("*.py")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """A page may leave out the first folders of a path, not its end."""
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")))
    examples_of_readers = {"train.py", "main.py"}
    assert {
        name for name in named - examples_of_readers if not any(f"/{p}".endswith(f"/{name}") for p in CODE)
    } == set()


def test_the_index_of_decisions_is_complete():
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    numbers = [record.name[:4] for record in records]
    assert len(set(numbers)) == len(numbers)  # they need not be without a gap
    for record in records:
        title = record.read_text(encoding="utf-8").splitlines()[0].split(". ", 1)[1]
        assert f"| {record.name[:4]} | [{title}]({record.name}) |" in index


@pytest.mark.parametrize("record", sorted((ROOT / "docs/adr").glob("[0-9]*.md")), ids=lambda p: p.name)
def test_a_decision_says_why_and_what_follows(record):
    headings = re.findall(r"^## (.+)$", record.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]


def distribution_names(requirements):
    return {re.split(r"[\[<>=;\s]", r, maxsplit=1)[0].lower() for r in requirements}


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    lists = {
        "Both sides (`aifarm`)": project["project"]["dependencies"],
        "A volunteer's and a researcher's machine (`aifarm[client]`)": extras["client"],
        "A server (`aifarm[server]`)": extras["server"],
        "Notebooks (`aifarm[notebook]`)": extras["notebook"],
        "Parquet data (`aifarm[parquet]`)": extras["parquet"],
        "Hugging Face models (`aifarm[hf]`)": extras["hf"],
        "ONNX files (`aifarm[onnx]`)": extras["onnx"],
        "Installations for tasks (`aifarm[installs]`)": extras["installs"],
        "Sweeps (`aifarm[sweep]`)": extras["sweep"],
        "Quantized bases (`aifarm[quantized]`)": extras["quantized"],
        "Private training on a server (`aifarm[privacy]`)": extras["privacy"],
        "Systems to measure beside (`aifarm[peers]`)": extras["peers"],
        "Development": project["dependency-groups"]["dev"],
    }
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    listed = {title: set(re.findall(r"^\| ([a-z0-9-]+) \|", text, re.MULTILINE)) for title, text in sections.items()}
    for names in listed.values():
        names.discard("package")
        names.discard("---")
    assert listed == {title: distribution_names(requirements) for title, requirements in lists.items()}


def apps():
    from farm_client.agent.cli import app as client
    from farm_client.cli.app import app as farm
    from farm_server.cli import app as server

    return {"farm": farm, "farm-client": client, "farm-server": server}


SHOWN = sorted(set(re.findall(r"(?:^ {4}|`)((?:farm|farm-client|farm-server) [a-z]+[^`\n]*)", README, re.MULTILINE)))


@pytest.mark.parametrize("line", SHOWN)
def test_commands_that_the_readme_shows_exist(line):
    program, verb, *arguments = line.split("#")[0].split()
    group = typer.main.get_group(apps()[program])
    assert verb in group.commands, f"{program} has no {verb}"
    options = {
        name for parameter in group.commands[verb].params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {argument for argument in arguments if argument.startswith("-")}
    assert used <= options


def test_the_readme_shows_commands_of_each_role():
    assert {line.split()[0] for line in SHOWN} == {"farm", "farm-client", "farm-server"}


def test_the_readme_says_what_is_not_protected():
    assert "Not protected yet:" in README
    assert "docs/sandbox.md" in README


def generator_of_modules():
    spec = importlib.util.spec_from_file_location("generate_modules", ROOT / "docs" / "generate_modules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_modules_is_drawn_from_their_docstrings():
    modules = generator_of_modules()
    assert modules.PAGE.read_text(encoding="utf-8") == modules.render(), "run `make modules`"
    assert [path for path in modules.modules() if not modules.first_sentence(ROOT / path)] == []


GLOSSARY = re.findall(
    r"^\| ([^|]+) \| [^|]+ \| `([^`]+)` \|$", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE
)


def test_the_glossary_has_each_word_once():
    words = [word for words, _ in GLOSSARY for word in words.split(", ")]
    assert len(words) == len(set(words)) > 60


@pytest.mark.parametrize(("word", "code"), GLOSSARY, ids=[word for word, _ in GLOSSARY])
def test_each_word_of_the_glossary_is_where_it_says(word, code):
    path, _, name = code.partition(":")
    assert (ROOT / path).exists()
    if name:
        found = {getattr(node, "name", None) for node in ast.parse((ROOT / path).read_text("utf-8")).body}
        assert name in found


def test_no_public_class_name_is_used_twice():
    names = defaultdict(list)
    for path in generator_of_modules().modules():
        for node in ast.parse((ROOT / path).read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].append(str(path))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


PERSONA = re.compile(r"\b(mind|told|hears?|tells?|voices?|bells?|door|patience|wish(es)?|manners|guests?)\b")


def first_sentences(path):
    """Return those of the module's docstring and of its classes'."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [re.split(r"(?<=[.!?])\s", ast.get_docstring(node) or "")[0] for node in (tree, *classes)]


def test_no_first_sentence_makes_a_person_of_a_program():
    """What a program does is said in the field's words: it sends, receives, returns, retries."""
    found = {
        str(path): [s for s in first_sentences(path) if PERSONA.search(s)] for path in generator_of_modules().modules()
    }
    assert {path: sentences for path, sentences in found.items() if sentences} == {}


def test_no_module_is_too_long_to_hold_in_the_head():
    lengths = {str(p): len((ROOT / p).read_text("utf-8").splitlines()) for p in generator_of_modules().modules()}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
JOURNEYS = re.findall(r"^### (.+?)$\n(.*?)(?=^###? |\Z)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
STEPS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", ARCHITECTURE)))


def names_defined(body, prefix=""):
    """Name the functions and classes, and the methods with their class: ``Wire.send``."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from names_defined(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize(("path", "name"), STEPS, ids=[f"{path}:{name}" for path, name in STEPS])
def test_each_step_of_the_architecture_is_where_it_says(path, name):
    assert name in set(names_defined(ast.parse((ROOT / path).read_text("utf-8")).body))


@pytest.mark.parametrize(("title", "text"), JOURNEYS, ids=[title for title, _ in JOURNEYS])
def test_each_step_of_a_journey_says_where_it_runs_and_what_it_may_touch(title, text):
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for step, code, thread, touches in rows:
        assert step.strip()
        assert re.fullmatch(r"`[\w/]+\.py:[\w.]+`", code)
        assert thread.split(",")[0].strip() in {"agent", "executor", "rehearsal", "researcher", "server"}
        assert touches.strip()


def test_the_architecture_has_five_journeys():
    assert len(JOURNEYS) == 5
