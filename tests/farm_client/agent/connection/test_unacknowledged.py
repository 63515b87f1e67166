from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.connection.unacknowledged import Untold
from protocol.messages import AssignmentProgress, Error, LogLine, Phase, Progress


def output(text="line"):
    doing = AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)
    return Progress(progress=doing, logs=(LogLine(text=text),))


def ending(assignment_id="a"):
    return Error(code="x", message="y", assignment_id=assignment_id, fence=1)


def test_what_is_proven_is_forgotten_and_the_rest_stays_in_order():
    untold = Untold()
    said = [output("1"), ending("a"), output("2"), ending("b")]
    for message in said:
        untold.add(message)
    assert untold.messages() == said
    untold.proven(2)
    assert untold.messages() == said[2:]
    assert untold.endings() == [said[3]]


def test_proof_is_asked_for_once():
    untold = Untold()
    assert untold.ask() is None
    untold.add(ending())
    number = untold.ask()
    assert untold.ask() is None
    untold.proven(number)
    assert untold.messages() == []
    untold.add(ending())
    assert untold.ask() > number


def test_a_flood_of_output_drops_no_ending():
    untold = Untold()
    first = ending()
    untold.add(first)
    for number in range(1000):
        untold.add(output(str(number)))
    assert untold.endings() == [first]
    assert len(untold.messages()) < 100
    assert untold.messages()[-1].logs[0].text == "999"


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=50), st.data())
def test_every_ending_is_kept_exactly_until_it_is_proven(kinds, data):
    untold = Untold()
    said = [ending(str(number)) if is_ending else output() for number, is_ending in enumerate(kinds)]
    for message in said:
        untold.add(message)
    number = data.draw(st.integers(0, len(said)))
    untold.proven(number)
    assert untold.endings() == [message for message in said[number:] if isinstance(message, Error)]
