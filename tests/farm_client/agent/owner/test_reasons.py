"""The rule of reasons for not working, by its laws: each field forbids by itself, and nothing else forbids."""

from dataclasses import replace
from datetime import UTC, datetime, time

from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.owner.hours import parse_hours
from farm_client.agent.owner.policy import OwnerPolicy
from farm_client.agent.owner.reasons import MOST_FAILURES, Observations, Reason, Rest, reasons_to_rest

ORDER = tuple(Reason)


def local(moment):
    return datetime.fromtimestamp(moment, UTC).replace(tzinfo=None)


nows = st.integers(1_700_000_000, 1_900_000_000).map(float)
policies = st.builds(
    OwnerPolicy,
    hours=st.sampled_from(("", "22:00-07:00", "mon-fri 22:00-07:00, sat-sun all")),
    only_idle=st.booleans(),
    idle_seconds=st.sampled_from((60.0, 300.0)),
    idle_load=st.sampled_from((0.25, 0.5)),
    on_battery=st.booleans(),
    daily_quota_bytes=st.none() | st.just(1000),
    paused=st.booleans(),
    paused_until=st.none() | nows,
)
observations = st.builds(
    Observations,
    input_idle_seconds=st.none() | st.floats(0, 1000),
    others_load=st.none() | st.floats(0, 1),
    on_battery=st.none() | st.booleans(),
    programs=st.sampled_from(((), ("game",))),
    failures=st.integers(0, 8),
    retry_at=nows,
    moved_bytes=st.sampled_from((0, 999, 1000, 5000)),
)


def forbids(policy, seen, now):
    """What each reason means, written down a second time."""
    return {
        Reason.PAUSED: policy.paused and (policy.paused_until is None or now < policy.paused_until),
        Reason.FAILURES: seen.failures >= MOST_FAILURES and now < seen.retry_at,
        Reason.HOURS: not parse_hours(policy.hours).hold_at(local(now)),
        Reason.QUOTA: policy.daily_quota_bytes is not None and seen.moved_bytes >= policy.daily_quota_bytes,
        Reason.PROGRAM: seen.programs != (),
        Reason.BATTERY: seen.on_battery is True and not policy.on_battery,
        Reason.IN_USE: policy.only_idle
        and seen.input_idle_seconds is not None
        and seen.input_idle_seconds < policy.idle_seconds,
        Reason.BUSY: policy.only_idle and seen.others_load is not None and seen.others_load > policy.idle_load,
    }


@given(policy=policies, seen=observations, now=nows)
def test_the_reasons_are_those_that_hold_each_by_itself_in_their_order(policy, seen, now):
    found = [rest.reason for rest in reasons_to_rest(policy, seen, now, local)]
    holds = forbids(policy, seen, now)
    assert found == [reason for reason in ORDER if holds[reason]]


@given(policy=policies, seen=observations, now=nows)
def test_what_a_system_does_not_tell_forbids_nothing(policy, seen, now):
    blind = replace(seen, input_idle_seconds=None, others_load=None, on_battery=None)
    assert {r.reason for r in reasons_to_rest(policy, blind, now, local)} <= {
        r.reason for r in reasons_to_rest(policy, seen, now, local)
    }


@given(policy=policies, seen=observations, now=nows)
def test_at_the_clock_of_a_reason_it_is_over_and_not_before(policy, seen, now):
    for rest in reasons_to_rest(policy, seen, now, local):
        if rest.until is not None:
            assert rest.until > now
            if rest.reason is Reason.QUOTA:  # what moves is counted anew then
                assert local(rest.until).time() == time()
                continue
            before = {r.reason for r in reasons_to_rest(policy, seen, rest.until - 0.5, local)}
            then = {r.reason for r in reasons_to_rest(policy, seen, rest.until, local)}
            assert rest.reason in before - then


@given(load=st.floats(0, 1), limit=st.sampled_from((0.25, 0.5)))
def test_who_rests_for_the_load_rests_until_it_is_well_below(load, limit):
    policy, seen = OwnerPolicy(only_idle=True, idle_load=limit), Observations(others_load=load)
    rests_on = bool(reasons_to_rest(policy, seen, 0.0, local, resting=(Reason.BUSY,)))
    assert rests_on == (load > 0.75 * limit)
    assert not reasons_to_rest(policy, seen, 0.0, local) or rests_on


def test_a_reason_is_a_sentence_with_its_clock():
    (rest,) = reasons_to_rest(OwnerPolicy(hours="22:00-07:00"), Observations(), 1_700_048_000.0, local)
    assert rest.in_words(local) == "outside of this machine's hours (22:00-07:00) until 22:00 on Wed"
    assert Rest(reason=Reason.PAUSED, detail="paused", until=0.0).in_words(local) == "paused until 00:00 on Thu"


def test_failures_name_the_last_one_and_what_to_do():
    seen = Observations(failures=MOST_FAILURES, last_failure="digits: no memory", retry_at=60.0)
    (rest,) = reasons_to_rest(OwnerPolicy(), seen, 0.0, local)
    assert "5 assignments in a row" in rest.detail
    assert "digits: no memory" in rest.detail
    assert rest.in_words(local).endswith("`farm-client resume` tries again, else paused until 00:01 on Thu")


def test_a_quota_that_is_used_up_ends_at_midnight():
    seen = Observations(moved_bytes=5 * 2**30)
    (rest,) = reasons_to_rest(OwnerPolicy(daily_quota_bytes=2**30), seen, 1_700_048_000.0, local)
    assert rest.in_words(local) == "5.0 GiB moved today, of 1.0 GiB that may: until 00:00 on Thu"
