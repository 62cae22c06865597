"""The child that keeps recordings for a slider, as a real process: killed, stuck, given too much, and left behind."""

import gzip
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from taxbreak_vllm.model.replays import Question, Reply
from taxbreak_vllm.service.http.trace_child import ChildLostError, TraceChild
from taxbreak_vllm.service.processes.trace_replayer import Replayer

BERT = gzip.decompress(
    (Path(__file__).parents[1] / "data" / "traces" / "h100_hf_bert-small_infer.json.gz").read_bytes()
)
REPLAYER = "taxbreak_vllm.service.processes.trace_replayer"
LIMIT_S = 60.0
ROOMY, MOST = 10**9, 4 * 10**9
COUNTER = "import sys\nfor n, line in enumerate(sys.stdin): print(n, line, end='', flush=True)"


def replayer(tmp_path, kept_bytes=ROOMY, most_bytes=MOST):
    words = (str(tmp_path / "baselines.sqlite3"), str(kept_bytes), str(most_bytes))
    return TraceChild((sys.executable, "-m", REPLAYER, *words))


@pytest.fixture
def counter():
    """A child that numbers what it is asked."""
    child = TraceChild((sys.executable, "-c", COUNTER))
    yield child
    child.close()


def asked(child, *captures, host="0.7"):
    question = Question([str(capture.path) for capture in captures], {"host": [host]})
    return msgspec.json.decode(child.ask(msgspec.json.encode(question), limit_s=LIMIT_S), type=Reply)


def predicted_ns(reply):
    return [msgspec.json.decode(answer)["window"]["predicted_ns"] for answer in reply.answers]


def test_one_process_answers_all_questions(counter):
    assert [counter.ask(b"a", limit_s=LIMIT_S) for _ in range(3)] == [b"0 a", b"1 a", b"2 a"]


def test_a_killed_child_is_replaced_and_its_successor_answers(counter):
    counter.ask(b"a", limit_s=LIMIT_S)
    first = counter.pid
    os.kill(first, signal.SIGKILL)

    assert counter.ask(b"b", limit_s=LIMIT_S) == b"0 b"
    assert counter.pid != first


def test_a_stuck_child_is_killed_in_time_and_the_next_question_has_another(counter):
    counter.ask(b"a", limit_s=LIMIT_S)
    first = counter.pid
    os.kill(first, signal.SIGSTOP)

    with pytest.raises(ChildLostError, match="could not be read within 1 s"):
        counter.ask(b"b", limit_s=1.0)

    assert not Path(f"/proc/{first}").exists()
    assert counter.ask(b"c", limit_s=LIMIT_S) == b"0 c"


@pytest.mark.parametrize(
    ("command", "reason"),
    [((sys.executable, "-c", "pass"), "ended before it answered"), (("/no/python",), "not start")],
)
def test_a_child_that_does_not_answer_at_all_is_told_at_once(command, reason):
    child = TraceChild(command)

    with pytest.raises(ChildLostError, match=reason):
        child.ask(b"a", limit_s=LIMIT_S)


def test_a_long_question_and_a_long_answer_go_through(counter):
    assert counter.ask(b"x" * 3_000_000, limit_s=LIMIT_S) == b"0 " + b"x" * 3_000_000


def test_closing_ends_the_child_in_the_middle_of_a_question(counter):
    counter.ask(b"a", limit_s=LIMIT_S)
    os.kill(counter.pid, signal.SIGSTOP)
    lost = []

    def ask():
        try:
            counter.ask(b"b", limit_s=LIMIT_S)
        except ChildLostError as error:
            lost.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    counter.close()
    asking.join(LIMIT_S)

    assert not asking.is_alive()
    assert lost
    with pytest.raises(ChildLostError, match="the service ends"):
        counter.ask(b"c", limit_s=LIMIT_S)


def test_it_ends_with_a_process_that_is_killed():
    script = f"""
import sys
from taxbreak_vllm.service.http.trace_child import TraceChild
child = TraceChild((sys.executable, "-m", {REPLAYER!r}, "none", "1000000000", "4000000000"))
child.ask(b'{{"paths": [], "change": {{}}}}', limit_s={LIMIT_S})
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sidecar:
        watched = os.pidfd_open(int(sidecar.stdout.readline()))
        sidecar.kill()
        ready, _, _ = select.select([watched], [], [], LIMIT_S)
        os.close(watched)

    assert ready


def test_a_recording_is_read_once_and_answers_as_a_new_process_does(put, tmp_path):
    capture, child = put("a", trace=BERT), replayer(tmp_path)
    first = asked(child, capture)
    pid = child.pid
    os.remove(capture.trace_path)

    assert predicted_ns(asked(child, capture)) == predicted_ns(first)
    assert predicted_ns(asked(child, capture, host="0.5")) < predicted_ns(first)
    assert child.pid == pid
    child.close()


def test_beyond_its_memory_it_keeps_the_newest_and_else_begins_anew(put, tmp_path):
    """With room for nothing, each answer is still right, and the process that gave it ends."""
    capture, child = put("a", trace=BERT), replayer(tmp_path, kept_bytes=1)

    assert predicted_ns(asked(child, capture)) == predicted_ns(asked(child, capture))
    child.close()


def test_the_oldest_recording_is_dropped_first(put, tmp_path, monkeypatch):
    held = iter([3, 1, 1])
    monkeypatch.setattr(f"{REPLAYER}._held_bytes", lambda: next(held))
    captures = [put(name, trace=BERT) for name in ("a", "b")]
    replayer = Replayer(tmp_path / "none", 2)
    for capture in captures:
        assert replayer.reply(Question([str(capture.path)], {"host": ["0.7"]})).answers
        os.remove(capture.trace_path)

    assert replayer.trim()
    assert replayer.reply(Question([str(captures[1].path)], {"host": ["0.7"]})).answers
    assert replayer.reply(Question([str(captures[0].path)], {"host": ["0.7"]})).unread


def test_a_trace_that_is_too_large_is_said_to_be_and_the_next_is_answered(put, tmp_path):
    """400 MB of names in a process that has some 200 MB more than it needs."""
    name = "x" * 1_000_000
    events = [
        {"ph": "X", "cat": "cpu_op", "name": f"{n}{name}", "ts": n, "dur": 1, "pid": 1, "tid": 1} for n in range(400)
    ]
    large = put("large", trace=msgspec.json.encode({"traceEvents": events}))
    small, child = put("small", trace=BERT), replayer(tmp_path, most_bytes=300_000_000)

    assert "too large" in asked(child, large).unread
    assert predicted_ns(asked(child, small))
    child.close()


def test_words_that_are_no_change_and_a_capture_that_is_no_trace_are_told_apart(put, tmp_path):
    junk, child = put("junk", trace=b"junk"), replayer(tmp_path)

    assert "--host fast" in asked(child, junk, host="fast").no_change
    assert "junk" in asked(child, junk).unread
    child.close()
