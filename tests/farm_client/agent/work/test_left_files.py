"""What ``on_epoch_end`` left is stored at the farm before the result that names it."""

from protocol.assignments import Kind, Result
from protocol.digests import digest_bytes
from protocol.messages import Error
from tests.farm_client.agent.scripted_farm import joined


def ending(farm, **files):
    assign = farm.assign(farm.task(doing="leave", files=files), round_number=0)
    return assign.model_copy(update={"kind": Kind.EPOCH_END, "slices": ()})


async def test_the_files_are_stored_and_then_named(farm, start_agent):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(ending(farm, **{"a.png": "picture", "in/empty": ""}))
        result = await peer.expect(Result)
        stored = {file.name: farm.blobs[file.digest] for file in result.artefacts}
    assert stored == {"a.png": b"picture", "in/empty": b""}
    assert [file.size_bytes for file in result.artefacts] == [7, 0]
    assert (result.update, result.samples) == (None, 1)


async def test_nothing_outside_of_the_scratch_folder_is_sent(farm, start_agent, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    async with start_agent():
        peer = await joined(farm)
        await peer.send(ending(farm, a=f"link:{secret}"))
        error = await peer.expect(Error)
        assert digest_bytes(b"secret") not in farm.blobs
    assert "no file of its scratch folder" in error.message
