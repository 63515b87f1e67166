"""The small parts that need no server."""

from __future__ import annotations

import base64
import importlib.util
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm_client.farm_address import split_address
from farm_server.edge.listener import bind, server_info
from farm_server.environment.clock import SteadyClock
from farm_server.environment.data_folder import DataFolder, ServerInfo, is_locked, read_server_info
from farm_server.environment.settings import ServerSettings
from farm_server.environment.tokens import TokenRole, Tokens, load_or_create_token
from farm_server.operations.running_server import running_server
from farm_server.tensors.serial_worker import SerialWorker
from farm_server.transfers.memory_blobs import MemoryBlobs
from protocol.assignments import Assign, Kind
from protocol.compression import CodecName, CodecSpec
from protocol.digests import digest_bytes
from protocol.errors import Conflict, NotFound, Unauthorized, Unavailable
from protocol.limits import INLINE_BYTES
from protocol.tasks import BlobRef, TaskBrief, WeightsDelta
from tests.farm_server import model

TOKENS = Tokens(join="join-secret", farm="farm-secret")
INT8 = CodecSpec(name=CodecName.INT8)
DOCS = Path(__file__).parents[2] / "docs"


def basic(user: str, password: str = "") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("Bearer join-secret", TokenRole.VOLUNTEER),
        ("bearer farm-secret", TokenRole.RESEARCHER),
        (basic("farm-secret"), TokenRole.RESEARCHER),
        (basic("join-secret", "x"), TokenRole.VOLUNTEER),
    ],
)
def test_a_token_gives_its_role(header, role):
    assert TOKENS.role_of(header) is role


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer jöin",
        "Basic",
        "Basic !!",
        basic(""),
        "Digest join-secret",
    ],
)
def test_anything_else_is_unauthorized(header):
    with pytest.raises(Unauthorized):
        TOKENS.role_of(header)


def test_a_token_of_other_letters_is_sent_as_utf8():
    header = "Bearer jöin-ш".encode().decode("latin-1")
    assert Tokens(join="jöin-ш", farm="other").role_of(header) is TokenRole.VOLUNTEER


def test_tokens_do_not_show_in_logs():
    assert "secret" not in repr(TOKENS)
    assert "secret" not in repr(ServerInfo(1, "http://x", "ws://secret@x", "http://secret@x"))


def test_a_token_is_made_once_for_its_owner_only(tmp_path):
    path = tmp_path / "token"
    token = load_or_create_token(path)
    assert load_or_create_token(path) == token
    assert len(token) >= 24
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("")
    with pytest.raises(Unauthorized, match="delete it"):
        load_or_create_token(path)


def test_a_folder_has_one_owner(tmp_path):
    owner = DataFolder(tmp_path)
    owner.lock()
    owner.publish(ServerInfo(4711, "http://127.0.0.1:1", "ws://x", "http://x"))
    with pytest.raises(Conflict, match="4711"):
        DataFolder(tmp_path).lock()
    assert is_locked(tmp_path)
    owner.unlock()
    assert not is_locked(tmp_path)
    assert read_server_info(tmp_path) is None


def test_what_a_killed_server_wrote_of_itself_is_not_believed(tmp_path):
    (tmp_path / "server.json").write_text(ServerInfo(1, "http://x", "ws://x", "http://x").to_json())
    with pytest.raises(NotFound):
        running_server(tmp_path)
    folder = DataFolder(tmp_path)
    folder.lock()
    with pytest.raises(Unavailable, match="starting"):
        running_server(tmp_path)
    folder.unlock()


def test_the_clock_never_runs_backwards_and_starts_after_what_is_known():
    clock = SteadyClock()
    assert abs(clock.now() - time.time()) < 5
    ahead = SteadyClock(not_before=time.time() + 1000)
    first = ahead.now()
    assert first >= time.time() + 990
    assert ahead.now() >= first


def test_addresses_carry_the_tokens_and_follow_the_public_url(tmp_path):
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        local = server_info(ServerSettings(data_dir=tmp_path), listener, TOKENS)
        assert (local.join_url, local.farm_url) == (
            f"ws://join-secret@127.0.0.1:{port}",
            f"http://farm-secret@127.0.0.1:{port}",
        )
        public = ServerSettings(data_dir=tmp_path, public_url="https://farm.example.org/lab/")
        assert server_info(public, listener, TOKENS).join_url == "wss://join-secret@farm.example.org/lab"


def test_an_address_brings_any_token_that_an_operator_chose(tmp_path):
    tokens = Tokens(join="a/b+c=d", farm="e@f:g#h%41é")
    with bind("127.0.0.1", 0) as listener:
        info = server_info(ServerSettings(data_dir=tmp_path), listener, tokens)
    assert split_address(info.join_url).token == tokens.join
    assert split_address(info.farm_url).token == tokens.farm


def test_a_port_in_use_is_a_conflict():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with pytest.raises(Conflict, match="--port"):
            bind("127.0.0.1", listener.getsockname()[1])


def test_a_serial_worker_keeps_order_and_never_runs_two_jobs_at_once():
    done: list[int] = []
    running = threading.Lock()
    finished = threading.Event()

    def job(number: int) -> None:
        assert running.acquire(blocking=False)
        done.append(number)
        running.release()
        if number == 199:
            finished.set()

    with ThreadPoolExecutor(4) as pool:
        worker = SerialWorker(pool)
        for number in range(200):
            worker.submit(lambda n=number: job(n))
        assert finished.wait(30)
    assert done == list(range(200))


def assign(weights: bytes, assignment_id: str = "a") -> Assign:
    brief = TaskBrief(
        task_id="t",
        name="t",
        mode="weights",
        code=model.ref(model.CODE),
        entry="train.py",
        config={},
        seed=0,
        batch_samples=1,
        dataset_kind="files",
    )
    return Assign(
        assignment_id=assignment_id,
        fence=1,
        kind=Kind.TRAIN,
        task=brief,
        round=3,
        epoch=0,
        weights=model.ref(weights),
        slices=(),
        lease_seconds=1.0,
    )


def test_the_least_used_inline_blobs_make_room():
    kept = MemoryBlobs(capacity_bytes=10)
    kept.keep(b"aaaa")
    kept.keep(b"bbbb")
    assert kept.filled(assign(b"aaaa")).weights.inline == b"aaaa"
    kept.keep(b"cccc")
    assert kept.filled(assign(b"bbbb")).weights.inline is None
    assert kept.filled(assign(b"aaaa")).weights == BlobRef(digest=digest_bytes(b"aaaa"), size_bytes=4, inline=b"aaaa")


def test_large_blobs_are_not_kept_inline():
    kept = MemoryBlobs(capacity_bytes=10 * INLINE_BYTES)
    data = bytes(INLINE_BYTES + 1)
    kept.keep(data)
    assert kept.filled(assign(data)).weights.inline is None


def with_deltas(*blobs: bytes) -> Assign:
    links = [
        WeightsDelta(
            base=digest_bytes(b"%d" % i), digest=digest_bytes(b"%d" % (i + 1)), codec=INT8, blob=model.ref(blob)
        )
        for i, blob in enumerate(blobs)
    ]
    return assign(b"weights").model_copy(update={"deltas": tuple(links)})


def test_small_deltas_ride_inline_instead_of_the_weights():
    kept = MemoryBlobs(capacity_bytes=10 * INLINE_BYTES)
    kept.keep(b"weights")
    kept.keep(b"second")
    message = kept.filled(with_deltas(b"first", b"second"))
    assert message.weights.inline is None
    assert [delta.blob.inline for delta in message.deltas] == [None, b"second"]
    assert kept.filled(assign(b"weights")).weights.inline == b"weights"


def test_an_inner_state_rides_beside_the_weights_as_far_as_there_is_room():
    kept = MemoryBlobs(capacity_bytes=10 * INLINE_BYTES)
    whole, half = bytes(INLINE_BYTES), b"s" * (INLINE_BYTES // 2)
    for blob in (b"weights", whole, half):
        kept.keep(blob)

    def filled(weights: bytes, state: bytes, **changes: object) -> tuple[bool, bool]:
        message = assign(weights).model_copy(update={"inner_state": model.ref(state), **changes})
        message = kept.filled(message)
        return message.weights.inline is not None, message.inner_state.inline is not None

    assert filled(b"weights", half) == (True, True)
    assert filled(b"weights", whole) == (True, False)
    assert filled(whole, half) == (True, False)
    assert filled(bytes(INLINE_BYTES + 1), half) == (False, True)
    assert filled(b"weights", half, deltas=with_deltas(half).deltas) == (False, True)
    assert filled(b"weights", half, deltas=with_deltas(half, half).deltas) == (False, False)
    held = kept.with_state(assign(b"weights").model_copy(update={"inner_state": model.ref(half)}))
    assert (held.weights.inline, held.inner_state.inline) == (None, half), "who holds the weights gets the state alone"


def test_a_version_that_is_nowhere_else_is_kept_whole():
    kept = MemoryBlobs(capacity_bytes=0)
    blobs = {digest_bytes(data): data for data in (b"weights", b"state")}
    kept.pin("t", digest_bytes(b"weights"), blobs)
    assert [kept.pinned(digest) for digest in blobs] == [b"weights", b"state"]
    kept.unpin("t", digest_bytes(b"older"))
    assert kept.pinned(digest_bytes(b"state")) == b"state"
    kept.unpin("t", digest_bytes(b"weights"))
    assert kept.pinned(digest_bytes(b"state")) is None


def test_the_latest_deltas_go_into_a_message_and_no_more_than_it_can_carry():
    kept = MemoryBlobs(capacity_bytes=10 * INLINE_BYTES)
    old, middle, new = (bytes([i]) * (INLINE_BYTES // 2 - i) for i in range(3))
    for blob in (old, middle, new):
        kept.keep(blob)
    message = kept.filled(with_deltas(old, middle, new))
    assert [delta.blob.inline is not None for delta in message.deltas] == [False, True, True]


def test_the_settings_page_is_written_from_the_settings():
    spec = importlib.util.spec_from_file_location("generate_server_settings", DOCS / "generate_server_settings.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == generator.render(), "run docs/generate_server_settings.py"


def test_the_environment_sets_what_the_page_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FARM_SERVER_PORT", "9999")
    monkeypatch.setenv("FARM_SERVER_JOIN_TOKEN", "chosen")
    settings = ServerSettings(data_dir=tmp_path)
    assert (settings.port, ServerSettings(port=1).port) == (9999, 1)
    assert DataFolder(tmp_path).tokens(settings).join == "chosen"
    assert "chosen" not in repr(settings)
