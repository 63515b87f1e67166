from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.work.output import MAX_METRICS_PER_FLUSH, PendingOutput
from farm_client.executor.output import LineSplitter
from protocol.limits import MAX_LOG_LINE_CHARS, MAX_LOG_LINES_PER_MESSAGE
from protocol.messages import AssignmentProgress, MetricPoint, Phase


def progress():
    return AssignmentProgress(assignment_id="a", fence=1, phase=Phase.COMPUTING)


@given(st.text(), st.lists(st.integers(1, 7)))
def test_lines_do_not_depend_on_the_pieces_they_come_in(text, cuts):
    data, splitter, lines = text.encode(), LineSplitter(), []
    whole = LineSplitter()
    expected = whole.feed(data) + whole.finish()
    for size in [*cuts, len(data)]:
        piece, data = data[:size], data[size:]
        lines += splitter.feed(piece)
    assert lines + splitter.finish() == expected


def test_an_endless_line_is_cut_and_does_not_fill_memory():
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * 65536) == []
    (line,) = splitter.feed(b"\n")
    assert len(line) == MAX_LOG_LINE_CHARS
    assert line.endswith("(line cut)")


def test_bytes_that_are_no_text_and_progress_bars_become_lines():
    splitter = LineSplitter()
    assert splitter.feed(b"10%\r20%\r\n\xff\n") == ["10%", "20%", "\ufffd"]


def test_nothing_pending_is_no_message():
    assert PendingOutput().take(progress) is None


def test_what_is_over_the_limits_is_dropped_and_counted():
    pending = PendingOutput()
    for number in range(500):
        pending.add_line("stdout", str(number))
    pending.add_metrics((MetricPoint(name="m", value=0.0),) * 300)
    message = pending.take(progress)
    assert len(message.logs) <= MAX_LOG_LINES_PER_MESSAGE
    assert len(message.metrics) == MAX_METRICS_PER_FLUSH
    dropped = 500 - (len(message.logs) - 1) + 100
    assert message.logs[-1].text.startswith(f"{dropped} lines or metrics dropped")
    assert pending.take(progress) is None


def test_a_note_of_the_agent_is_not_crowded_out():
    pending = PendingOutput()
    for number in range(500):
        pending.add_line("stdout", str(number))
    pending.add_note("the executor was killed by SIGSEGV")
    notes = [line.text for line in pending.take(progress).logs if line.stream == "agent"]
    assert notes[0] == "the executor was killed by SIGSEGV"
    assert len(notes) == 2


def test_notes_are_bounded_too():
    pending = PendingOutput()
    for number in range(500):
        pending.add_note(str(number))
        pending.add_line("stdout", "line")
    assert len(pending.take(progress).logs) <= MAX_LOG_LINES_PER_MESSAGE
