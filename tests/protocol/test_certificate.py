"""A certificate of contribution: whatever is changed in it is found, and only the farm's own key passes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.certificate import (
    FORMAT,
    BadCertificate,
    Certificate,
    SignedCertificate,
    TaskContribution,
    canonical,
    from_file,
    public_key_of,
    sign,
    to_file,
    verify,
)

SEED, OTHER = bytes(range(32)), bytes(32)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_amounts = st.integers(0, 10**30)
_tasks = st.builds(
    TaskContribution, task_id=_texts, name=_texts, assignments=_amounts, samples=_amounts, flops=_amounts
)
CERTIFICATES = st.builds(
    Certificate,
    farm=_texts,
    issued_at=_texts,
    kind=st.sampled_from(["client", "team"]),
    subject=_texts,
    name=_texts,
    first_day=_texts,
    last_day=_texts,
    assignments=_amounts,
    samples=_amounts,
    measured_samples=_amounts,
    flops=_amounts,
    tasks=st.lists(_tasks, max_size=3),
    more_tasks=_amounts,
)
ONE = Certificate(
    farm="barn",
    issued_at="2026-11-27T20:00:00Z",
    kind="client",
    subject="c1",
    name="Ada's box",
    first_day="2026-11-01",
    last_day="2026-11-27",
    assignments=3,
    samples=192,
    measured_samples=192,
    flops=10**25,
    tasks=[TaskContribution(task_id="t1", name="digits", assignments=3, samples=192, flops=10**25)],
    more_tasks=0,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON document that hold no others."""
    if isinstance(value, dict):
        return [place for key, inner in value.items() for place in places(inner, (*at, key))]
    if isinstance(value, list):
        return [place for n, inner in enumerate(value) for place in places(inner, (*at, n))]
    return [at]


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for step in place[:-1]:
        document = document[step]
    document[place[-1]] = value


@given(CERTIFICATES)
def test_what_was_signed_is_read_again_and_passes(certificate: Certificate) -> None:
    signed = sign(certificate, SEED)
    read = from_file(to_file(signed))
    assert read == signed
    verify(read)
    verify(read, public_key_of(SEED))


@given(CERTIFICATES, st.data())
def test_any_change_of_any_value_is_found(certificate: Certificate, data: st.DataObject) -> None:
    document = json.loads(to_file(sign(certificate, SEED)))
    place = data.draw(st.sampled_from(places(document)))
    old = document
    for step in place:
        old = old[step]
    others = _amounts | _texts | st.none() | st.booleans() | st.floats(allow_nan=False)
    new = data.draw(others.filter(lambda value: value != old or type(value) is not type(old)))
    put(document, place, new)
    with pytest.raises(BadCertificate):
        verify(from_file(json.dumps(document).encode()), public_key_of(SEED))


@given(st.data())
def test_any_changed_character_of_the_file_changes_nothing_or_is_found(data: st.DataObject) -> None:
    file = bytearray(to_file(sign(ONE, SEED)))
    at = data.draw(st.integers(0, len(file) - 1))
    file[at] = data.draw(st.integers(0, 255))
    try:
        read = from_file(bytes(file))
        verify(read, public_key_of(SEED))
    except BadCertificate:
        return
    assert read == sign(ONE, SEED)  # white space


@pytest.mark.parametrize("where", ["certificate", "task", "file"])
def test_what_is_added_or_left_out_is_found(where: str) -> None:
    document = json.loads(to_file(sign(ONE, SEED)))
    part = {"certificate": document["certificate"], "task": document["certificate"]["tasks"][0], "file": document}[
        where
    ]
    part["extra"] = 1
    with pytest.raises(BadCertificate, match="extra"):
        from_file(json.dumps(document).encode())
    del part["extra"]
    part.popitem()
    with pytest.raises(BadCertificate):
        from_file(json.dumps(document).encode())


def test_another_farms_signature_is_not_this_ones() -> None:
    forged = sign(ONE, OTHER)
    verify(forged)  # whole, by whoever signed it
    with pytest.raises(BadCertificate, match="another farm"):
        verify(forged, public_key_of(SEED))
    renamed = forged.model_copy(update={"public_key": public_key_of(SEED)})
    with pytest.raises(BadCertificate, match="changed"):
        verify(renamed, public_key_of(SEED))


@pytest.mark.parametrize("key", ["", "x", "A" * 44, base64.b64encode(bytes(31)).decode(), "é"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(BadCertificate):
        verify(sign(ONE, SEED), key)


def test_base64_has_one_form() -> None:
    signed = sign(ONE, SEED)
    loose = signed.signature[:-3] + chr(ord(signed.signature[-3]) + 1) + "=="  # bits that no byte has
    for other in (loose, signed.signature + "\n", signed.signature.rstrip("=")):
        with pytest.raises(BadCertificate):
            verify(signed.model_copy(update={"signature": other}))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"certificate": NaN}'])
def test_other_files_are_no_certificates(data: bytes) -> None:
    with pytest.raises(BadCertificate, match="no certificate"):
        from_file(data)


def test_a_name_that_is_there_twice_is_found() -> None:
    file = to_file(sign(ONE, SEED)).replace(b'"samples": 192,', b'"samples": 1, "samples": 192,', 1)
    with pytest.raises(BadCertificate, match="twice"):
        from_file(file)


def test_the_bytes_that_are_signed() -> None:
    text = canonical(ONE.model_copy(update={"name": "Ünn", "tasks": []})).decode("ascii")
    assert text == (
        f"{FORMAT}\n"
        '{"assignments":3,"farm":"barn","first_day":"2026-11-01","flops":10000000000000000000000000,'
        '"format":"aifarm-certificate-1","issued_at":"2026-11-27T20:00:00Z","kind":"client","last_day":"2026-11-27",'
        '"measured_samples":192,"more_tasks":0,"name":"\\u00dcnn","samples":192,"subject":"c1","tasks":[]}'
    )


def test_it_is_the_standards_signature() -> None:
    """The first test vector of RFC 8032, section 7.1, has this key."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert public_key_of(seed) == base64.b64encode(public).decode()
    assert isinstance(sign(ONE, seed), SignedCertificate)
