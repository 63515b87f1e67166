from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.connection.unacknowledged import Unacknowledged
from protocol.assignments import AssignmentProgress, LogLine, Phase, Progress
from protocol.messages import Error


def output(text="line"):
    doing = AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)
    return Progress(progress=doing, logs=(LogLine(text=text),))


def ending(assignment_id="a"):
    return Error(code="x", message="y", assignment_id=assignment_id, fence=1)


def test_what_is_proven_is_forgotten_and_the_rest_stays_in_order():
    unacknowledged = Unacknowledged()
    said = [output("1"), ending("a"), output("2"), ending("b")]
    for message in said:
        unacknowledged.add(message)
    assert unacknowledged.messages() == said
    unacknowledged.proven(2)
    assert unacknowledged.messages() == said[2:]
    assert unacknowledged.endings() == [said[3]]


def test_proof_is_asked_for_once():
    unacknowledged = Unacknowledged()
    assert unacknowledged.ask() is None
    unacknowledged.add(ending())
    number = unacknowledged.ask()
    assert unacknowledged.ask() is None
    unacknowledged.proven(number)
    assert unacknowledged.messages() == []
    unacknowledged.add(ending())
    assert unacknowledged.ask() > number


def test_a_flood_of_output_drops_no_ending():
    unacknowledged = Unacknowledged()
    first = ending()
    unacknowledged.add(first)
    for number in range(1000):
        unacknowledged.add(output(str(number)))
    assert unacknowledged.endings() == [first]
    assert len(unacknowledged.messages()) < 100
    assert unacknowledged.messages()[-1].logs[0].text == "999"


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=50), st.data())
def test_every_ending_is_kept_exactly_until_it_is_proven(kinds, data):
    unacknowledged = Unacknowledged()
    said = [ending(str(number)) if is_ending else output() for number, is_ending in enumerate(kinds)]
    for message in said:
        unacknowledged.add(message)
    number = data.draw(st.integers(0, len(said)))
    unacknowledged.proven(number)
    assert unacknowledged.endings() == [message for message in said[number:] if isinstance(message, Error)]
