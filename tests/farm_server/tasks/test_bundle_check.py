"""No task is taken whose code no client could unpack."""

import io
import zipfile

import pytest

from farm_server.tasks import bundle_check
from farm_server.tasks.bundle_check import check_bundle
from protocol.errors import InvalidTask
from tests.farm_server import model


def bundle(*names, compression=zipfile.ZIP_DEFLATED, text="x = 1\n" * 40):
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", compression) as archive:
        for name in names or ("train.py",):
            archive.writestr(name, text)
    return bytearray(output.getvalue())


def changed(at, data, **how):
    zipped = bundle(**how)
    at = at if at >= 0 else zipped.find(b"PK\1\2") - at
    zipped[at : at + len(data)] = data
    return bytes(zipped)


DAMAGED = {
    "a broken deflate stream": (changed(40, b"\xff" * 4), "damaged"),
    "LZMA": (bytes(bundle(compression=zipfile.ZIP_LZMA)), "method 14"),
    "a broken bzip2 stream": (changed(50, b"\xff" * 10, compression=zipfile.ZIP_BZIP2), "method 12"),
    "a name that is not UTF-8": (bytes(bundle("träin.py")).replace("ä".encode(), b"\xff\xfe"), "damaged"),
    "encrypted": (changed(-8, b"\1"), "encrypted"),
    "an unknown method": (changed(-10, b"\x63\0"), "method 99"),
    "a wrong checksum": (changed(-16, b"\0\0\0\0"), "damaged"),
    "an offset past the end": (changed(-42, b"\xff\xff\xff\x7f"), "damaged"),
    "cut": (bytes(bundle()[:100]), "end is missing"),
    "no zip": (b"x" * 500, "not a zip"),
    "nothing": (b"", "not a zip"),
    "a path that leads out": (bytes(bundle("../train.py")), "leads out"),
    "without the entry": (bytes(bundle("other.py")), "no 'train.py'"),
}


@pytest.mark.parametrize("what", DAMAGED)
async def test_a_submission_with_damaged_code_is_refused_with_the_reason(server, what):
    code, words = DAMAGED[what]
    await model.upload(server.http, code, model.SHARD, model.weights())
    body = model.spec(code=model.ref(code)).model_dump(mode="json")
    answer = await server.http.post("/v1/tasks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_task")
    assert words in answer.json()["message"]


def test_a_bundle_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    path.write_bytes(bundle(text="x" * 10_000))
    monkeypatch.setattr(bundle_check, "MAX_BUNDLE_BYTES", 5_000)
    with pytest.raises(InvalidTask, match="unpacks to 10000 bytes"):
        check_bundle(path, "train.py")
    monkeypatch.setattr(bundle_check, "MAX_BUNDLE_BYTES", 50)
    with pytest.raises(InvalidTask, match="at most 50"):
        check_bundle(path, "train.py")


@pytest.mark.parametrize("entry", ["train.py", "./train.py"])
def test_a_sound_bundle_is_taken(tmp_path, entry):
    path = tmp_path / "sound.zip"
    path.write_bytes(bundle("train.py", "pkg/mod.py"))
    check_bundle(path, entry)
    assert [found.name for found in tmp_path.iterdir()] == ["sound.zip"]
