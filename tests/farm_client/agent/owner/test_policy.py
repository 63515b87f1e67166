"""The policy's file: what was set is read back, and what is damaged is never taken for leave to work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.errors import BadSettings, DamagedPolicy
from farm_client.agent.owner.policy import OwnerPolicy, load_policy, save_policy
from tests.farm_client.agent.owner.test_reasons import policies


def test_who_never_set_anything_allows_all_but_the_battery(tmp_path):
    policy = load_policy(tmp_path / "policy.json")
    assert policy == OwnerPolicy()
    assert (policy.hours, policy.work_for, policy.paused, policy.on_battery) == ("", (), False, False)


def test_what_was_set_is_read_back_and_only_its_owner_may_read_it(tmp_path):
    path = tmp_path / "policy.json"
    policy = OwnerPolicy(hours="mon-fri 22:00-07:00", pause_while=("game",), work_for=("alice",), paused_until=5.0)
    save_policy(path, policy)
    assert load_policy(path) == policy
    assert path.stat().st_mode & 0o777 == 0o600


@given(policy=policies)
def test_a_policy_survives_its_own_words(policy):
    assert OwnerPolicy.model_validate_json(policy.model_dump_json()) == policy


@given(policy=policies, cut=st.integers(min_value=1))
def test_no_part_of_a_file_is_taken_for_a_policy(tmp_path_factory, policy, cut):
    path = tmp_path_factory.mktemp("home") / "policy.json"
    whole = policy.model_dump_json().encode()
    path.write_bytes(whole[: -(cut % len(whole)) or None][: len(whole) - 1])
    with pytest.raises(DamagedPolicy, match="mend it, or delete it"):
        load_policy(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"hours": "whenever"}', "hours: "),
        ('{"gpus_of_a_newer_version": [0]}', "gpus_of_a_newer_version"),
        ('{"on_battery": "perhaps"}', "on_battery"),
        ("[]", "the policy"),
    ],
)
def test_a_damaged_file_names_the_field_and_what_to_do(tmp_path, text, said):
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(DamagedPolicy, match=said) as raised:
        load_policy(tmp_path / "policy.json")
    assert "farm-client set" in raised.value.message


def test_a_file_that_cannot_be_opened_is_damaged_too(tmp_path):
    (tmp_path / "policy.json").mkdir()
    with pytest.raises(DamagedPolicy, match="directory"):
        load_policy(tmp_path / "policy.json")


def test_a_change_keeps_the_rest_and_a_wrong_one_changes_nothing():
    policy = OwnerPolicy(hours="22:00-07:00")
    assert policy.changed({"only_idle": True}) == OwnerPolicy(hours="22:00-07:00", only_idle=True)
    with pytest.raises(BadSettings, match="hours"):
        policy.changed({"hours": "25"})
    with pytest.raises(BadSettings, match="nonsense"):
        policy.changed({"nonsense": 1})


def test_programs_are_named():
    with pytest.raises(BadSettings, match="pause_while"):
        OwnerPolicy().changed({"pause_while": [" "]})
