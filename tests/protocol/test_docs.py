"""docs/protocol.md says what the code does: every table and every example byte of it is checked here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from blake3 import blake3
from safetensors import deserialize

from protocol import bounds, errors, limits
from protocol.assignments import Result
from protocol.codec import decode, decode_entry, split
from protocol.digests import digest_bytes
from protocol.messages import MESSAGE
from protocol.packing import MAX_ITEMS
from protocol.resources import MAX_GPUS
from protocol.sendqueue import URGENT, Packed, SendQueue
from protocol.session import SENDS, SINCE, SessionState, Side
from protocol.tensors import DTYPE_BYTES, MAX_HEADER_BYTES, check_update, parse_layout, read_header
from protocol.versions import SUPPORTED
from tests.protocol.schema_text import DEFINITIONS, ENUMS, MESSAGES, RECORDS, TYPES, fields_of, values_text

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
DIRECTIONS = {
    "Client to server.": {Side.CLIENT},
    "Server to client.": {Side.SERVER},
    "Both directions.": set(Side),
}
EXAMPLES = re.findall(r"```json\n(.*?)```\n\n```hex\n(.*?)```", PAGE, re.DOTALL)
NOT_OF_A_FRAME = {"unauthorized", "identity_in_use", "unavailable"}
"""Refusals that the server decides after a well-formed hello."""


def section(title: str, level: str = "##") -> str:
    """Return the text under a heading, up to the next one of its level or above."""
    _, _, after = PAGE.partition(f"\n{level} {title}\n")
    assert after, f"the page lacks the section {title!r}"
    return re.split(rf"\n#{{2,{len(level)}}} ", after)[0]


def subsections(title: str) -> dict[str, str]:
    parts = re.split(r"\n### ", section(title))[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its head and its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def unquoted(cell: str) -> str:
    return cell.strip("`")


def hex_after(marker: str) -> bytes:
    found = re.search(rf"<!-- {marker} -->\n```hex\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return bytes.fromhex(found[1])


def with_bytes(value: Any) -> Any:
    """Undo the page's way to write bytes in JSON."""
    if isinstance(value, dict):
        return bytes.fromhex(value["$bytes"]) if "$bytes" in value else {k: with_bytes(v) for k, v in value.items()}
    return [with_bytes(item) for item in value] if isinstance(value, list) else value


def test_every_message_is_documented_and_nothing_else() -> None:
    assert set(subsections("Messages")) == set(MESSAGES)
    assert set(subsections("Records")) == set(RECORDS)


@pytest.mark.parametrize("name", [*MESSAGES, *RECORDS])
def test_every_field_is_documented_with_its_type_limits_and_default(name: str) -> None:
    text = (subsections("Messages") | subsections("Records"))[name]
    documented = {unquoted(row[0]): (row[1], row[2]) for row in rows(text)}
    assert documented == fields_of(DEFINITIONS[name] if name in RECORDS else MESSAGES[name])
    assert all(row[3] for row in rows(text)), "each field has a meaning"


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_names_its_direction(name: str) -> None:
    text = subsections("Messages")[name]
    (stated,) = (sides for words, sides in DIRECTIONS.items() if text.startswith(words))
    assert stated == {side for row in SENDS.values() for side, legal in row.items() if name in legal}


def test_every_value_is_documented_in_order() -> None:
    documented: dict[str, list[str]] = {}
    for record, value, _ in rows(section("Values")):
        documented.setdefault(record, []).append(unquoted(value))
    assert documented == ENUMS


def test_every_type_is_documented_with_its_values() -> None:
    documented = {name: values for name, values, _ in rows(section("Types"))}
    assert list(documented) == list(TYPES)
    assert all(documented[name].startswith(values_text(alias)) for name, alias in TYPES.items())


def test_the_types_that_words_describe_have_these_limits() -> None:
    values = {name: text for name, text, _ in rows(section("Types"))}
    assert f"at most {bounds.MAX_METRICS}" in values["metrics"]
    assert f"at most {bounds.MAX_CONFIG_DEPTH} of those inside each other" in values["config"]
    assert f"below {bounds.MIN_RATE:g} it is 0" in values["rate"]
    assert PAGE.count(f"the first {MAX_GPUS} are kept") == 2


def test_the_states_are_the_sessions_table() -> None:
    documented = {
        (SessionState(state), side): set(filter(None, cell.split(", ")))
        for state, *cells in rows(section("States"))
        for side, cell in zip(Side, cells, strict=True)
    }
    assert documented == {(state, side): set(legal) for state, row in SENDS.items() for side, legal in row.items()}


def test_the_limits_are_the_codes() -> None:
    documented = {unquoted(name): float(value) for name, value, _ in rows(section("Limits"))}
    assert documented == {name: value for name, value in vars(limits).items() if name.isupper()}
    assert f"at most {MAX_ITEMS} items" in section("Frames")
    assert f"at most {MAX_HEADER_BYTES}" in section("Tensor files")


def test_the_error_codes_are_the_error_trees() -> None:
    frame_errors = {
        error.code for error in errors.ProtocolError.__subclasses__() if error.__module__ == "protocol.errors"
    }
    assert {unquoted(row[0]) for row in rows(section("Errors"))} == frame_errors | NOT_OF_A_FRAME
    assert {errors.Unauthorized.code, errors.IdentityInUse.code, errors.Unavailable.code} == NOT_OF_A_FRAME


def test_the_version_and_the_dtypes_are_the_codes() -> None:
    assert f"# The protocol, version {max(SUPPORTED)}\n" in PAGE
    *most, last = DTYPE_BYTES
    assert f"{', '.join(most)} and {last}" in section("Tensor files")


def name_of(shown: str) -> str:
    fields = json.loads(shown)
    return "batch" if isinstance(fields, list) else str(fields["type"])


@pytest.mark.parametrize(("shown", "frame"), EXAMPLES, ids=[name_of(shown) for shown, _ in EXAMPLES])
def test_each_example_gives_its_bytes(shown: str, frame: str) -> None:
    fields = with_bytes(json.loads(shown))
    assert msgpack.packb(fields) == bytes.fromhex(frame)
    messages = [decode_entry(entry) for entry in split(bytes.fromhex(frame))]
    assert messages == [MESSAGE.validate_python(f) for f in (fields if isinstance(fields, list) else [fields])]


def test_the_example_of_a_batch_is_what_a_queue_packs() -> None:
    (frame,) = (bytes.fromhex(frame) for shown, frame in EXAMPLES if name_of(shown) == "batch")
    queue = SendQueue()
    for body in msgpack.unpackb(frame):
        queue.put(MESSAGE.validate_python(body), msgpack.packb(body))
    assert queue.next_frame(limits.MAX_BATCH_BYTES) == Packed(frame, 2)


def test_the_urgent_messages_are_the_queues() -> None:
    overtaking = section("Frames").partition("cannot be interrupted; but ")[2].partition(" may overtake")[0]
    assert set(re.findall(r"`(\w+)`", overtaking)) == URGENT


def test_the_versions_table_is_complete() -> None:
    assert [int(row[0]) for row in rows(section("Versions"))] == list(SUPPORTED)
    assert all(f"`{name}`" in rows(section("Versions"))[since - 1][1] for name, since in SINCE.items())


def test_there_are_examples_and_no_other_hex() -> None:
    assert len(EXAMPLES) >= 8
    assert PAGE.count("```hex") == len(EXAMPLES) + 2


def test_the_tensor_files_are_as_described() -> None:
    weights, update = hex_after("weights file"), hex_after("update file")
    layout = parse_layout(weights)
    check_update(layout, read_header(update))
    assert [(t.name, t.dtype, t.shape, t.role) for t in layout.tensors] == [
        ("n", "I64", (), "buffer"),
        ("w", "F32", (2,), "parameter"),
    ]
    assert layout.tied == {"head.w": "w"}
    data = {name: bytes(tensor["data"]) for name, tensor in deserialize(weights)}
    assert np.frombuffer(data["w"], "<f4").tolist() == [1.0, -2.0]
    assert np.frombuffer(data["n"], "<i8").tolist() == [3]
    changed = {name: bytes(tensor["data"]) for name, tensor in deserialize(update)}
    assert np.frombuffer(changed["w"], "<f4").tolist() == [0.5, 0.25]
    assert np.frombuffer(changed["n"], "<i8").tolist() == [4]


def test_the_result_example_carries_the_update_file() -> None:
    frame = next(frame for shown, frame in EXAMPLES if name_of(shown) == "result")
    result = decode(bytes.fromhex(frame))
    assert isinstance(result, Result)
    assert result.update
    assert result.update.inline == hex_after("update file")
    assert result.update.digest == digest_bytes(result.update.inline)


def test_the_digest_example() -> None:
    assert digest_bytes(b"aifarm") in section("Blobs")


def documented_order(seed: int, epoch: int, shard: int, samples: int) -> tuple[int, list[int]]:
    """Follow the page to the letter, without torch: (S, the order)."""
    derived = int.from_bytes(blake3(f"{seed}/{epoch}/{shard}".encode()).digest()[:8], "little") & (2**63 - 1)
    twister = np.random.RandomState(derived & 0xFFFFFFFF)
    order = list(range(samples))
    for i in range(samples - 1):
        j = i + int(twister.randint(0, 2**32, dtype=np.uint32)) % (samples - i)
        order[i], order[j] = order[j], order[i]
    return derived, order


def test_the_order_example() -> None:
    derived, order = documented_order(7, 0, 3, 5)
    assert f"S is {derived} and the order {order}" in section("Order of samples").replace("\n", " ")


@pytest.mark.parametrize(("samples", "streams"), [(1, 1), (12, 1), (12, 3), (12, 12)])
def test_the_documented_order_of_streams_is_the_executors(samples: int, streams: int) -> None:
    from farm_client.data.order import order_of_streams

    length = samples // streams
    documented = [place % streams * length + place // streams for place in range(samples)]
    assert order_of_streams(samples, streams).tolist() == documented


@pytest.mark.parametrize("samples", [1, 2, 100, 3000])
def test_the_documented_order_is_the_executors(samples: int) -> None:
    from farm_client.data.order import shard_order
    from protocol.tasks import Split

    assert shard_order(9, 4, 2, samples, Split.TRAIN).tolist() == documented_order(9, 4, 2, samples)[1]
    assert shard_order(9, 4, 2, samples, Split.HOLDOUT).tolist() == list(range(samples))
