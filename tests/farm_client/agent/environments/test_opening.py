"""Opening a home's environments: what was left goes, and an owner who consents hears what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_client.agent.environments import keeper, opening
from farm_client.agent.environments.opening import open_environments
from farm_client.agent.environments.store import EnvironmentStore
from farm_client.agent.errors import NoEnvironment
from farm_client.agent.settings import load_settings
from protocol.tasks import BlobRef
from tests.farm_client.agent.environments.tiny_index import names_in

DIGEST = "a" * 64


@pytest.mark.parametrize("consents", [True, False])
async def test_who_consents_hears_that_uv_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consents: bool
) -> None:
    for module in (opening, keeper):
        monkeypatch.setattr(module, "find_uv", lambda: None)
    notes: list[str] = []
    (tmp_path / "building-x").mkdir()
    settings = load_settings(home=tmp_path)
    async with open_environments(tmp_path, settings, lambda: consents, notes.append, in_use=tuple) as environments:
        assert not environments.told().installs, "what can't install offers no installation"
        assert not names_in(tmp_path)
    assert ("pip install 'aifarm[installs]'" in "".join(notes)) is consents


async def test_what_an_executor_uses_is_told_by_its_folder_and_stays(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, environment_bytes=1)
    in_use = {tmp_path / DIGEST / "packages"}
    async with open_environments(tmp_path, settings, lambda: False, lambda _: None, in_use=lambda: in_use) as kept:
        for digest in (DIGEST, "b" * 64):
            folder = kept.store.begin()
            (folder / "packages/one.py").write_text("#" * 100)
            kept.store.finish(folder, digest, ())
        assert set(kept.store.digests()) == {DIGEST, "b" * 64}
        in_use.clear()
        kept.store.evict()
        assert not kept.store.digests()


async def test_an_environment_that_went_meanwhile_is_no_fault(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path, 1)
    kept = keeper.EnvironmentKeeper(store, keeper.KeeperParts(lambda: True, opening.InstallBounds(1.0, 1)))
    with pytest.raises(NoEnvironment, match="was removed meanwhile"):
        kept.packages(BlobRef(digest=DIGEST, size_bytes=1))
