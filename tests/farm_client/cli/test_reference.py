"""The reference pages of `farm` say what `farm` does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from farm_client.cli.app import VERBS
from farm_client.cli.demo import DemoReport
from farm_client.cli.exit_codes import MEANING, ExitCode
from farm_client.cli.output import OutputKind
from farm_client.cli.submit_options import SubmitOptions, describe_task
from farm_client.cli.verbs import name_of
from protocol import certificate, rest, rest_credit
from protocol.compression import CodecName

DOCS = Path(__file__).parents[3] / "docs"
NAMES = [name_of(function) for functions in VERBS.values() for function in functions]


def rows(page: str) -> list[list[str]]:
    """Return the cells of the page's table rows, the header left out."""
    lines = re.findall(r"^\| (.+) \|$", (DOCS / "reference" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [line.split(" | ") for line in lines if not line.startswith("---")][1:]


def test_the_page_of_verbs_is_what_the_command_says():
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.render(), "run `python docs/generate_cli.py`"


def test_every_exit_code_is_on_its_page():
    assert rows("exit-codes.md") == [[str(int(code)), code.name, MEANING[code]] for code in ExitCode]


def test_every_kind_of_envelope_is_on_its_page():
    table = [row for row in rows("json-output.md") if "farm-client" not in row[2]]
    assert {row[0] for row in table} == set(OutputKind)
    assert len(table) == len(OutputKind)
    for _, data, printers in table:
        for record in re.findall(r"[A-Z]\w+", data):
            assert any(hasattr(module, record) for module in (rest, rest_credit, certificate))
        for verb in re.findall(r"`(\w+)[^`]*`", printers):
            assert verb in NAMES


def test_the_demos_fields_are_on_the_page():
    (fields,) = [row[1] for row in rows("json-output.md") if row[0] == "demo"]
    assert fields.split(", ") == list(DemoReport.model_fields)


def test_the_page_of_slow_links_shows_recipes_that_are_valid(tmp_path):
    page = (DOCS / "reference" / "slow-links.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```toml\n(.+?)```", page, re.DOTALL)
    for number, recipe in enumerate(recipes):
        path = tmp_path / f"{number}.toml"
        path.write_text(recipe, encoding="utf-8")
        assert describe_task(SubmitOptions(file=tmp_path, config=path)).recipe.update_codec.name != "none"
    example = (DOCS.parent / "examples" / "charlm" / "diloco.toml").read_text(encoding="utf-8")
    assert recipes[-1] in example


def test_every_codec_is_on_the_page_of_slow_links():
    assert {name for row in rows("slow-links.md") for name in re.findall(r"`(\w+)`", row[0])} >= set(CodecName)


def test_the_issues_verbs_are_all_there():
    wanted = "init submit ls show why watch wait logs metrics pull clients explain pause resume cancel retry demo run"
    assert set(wanted.split()) <= set(NAMES)
