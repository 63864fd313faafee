"""The first process, with a control and workers of the test's own: what it keeps, that it beats,
that nothing makes it wait or end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.pulse import SLOTS, Pulses

ROOT = Path(__file__).parents[2]
FRAME = """
    import json, os, signal, socket, sys, time
    import orjson
    from nodeagent import supervisor
    from nodeagent.channel import DESCRIPTORS, pair
    from nodeagent.redirect import heartbeat

    heartbeat.beat = lambda descriptor: os.write(descriptor, b"beat ")
    heartbeat.end = lambda descriptor: os.write(descriptor, b"end ")
    supervisor.SILENT_SECONDS = 0.5

    def receive(end, wanted):
        end.setblocking(True)
        while True:
            payload, descriptors, _, _ = socket.recv_fds(end, 65536, DESCRIPTORS)
            message = orjson.loads(payload)
            if message["op"] == wanted:
                return message, descriptors
            if message["op"] == "kept":
                kept.extend(message["keys"])
                assert len(message["keys"]) == len(descriptors)
            if message["op"] == "orphan":
                orphans.append(descriptors)

    def send(end, message, descriptors=()):
        end.setblocking(True)
        socket.send_fds(end, [orjson.dumps(message)], list(descriptors))

    def fork(end):
        ours, theirs = pair()
        send(end, {"op": "fork", "number": 1}, [theirs.fileno(), ours.fileno()])
        receive(end, "forked")

    def beat(end):
        send(end, {"op": "heart", "timeout": 0.25}, [1])

    def worker(end, pulse):
        while True:
            pulse.turn()
            time.sleep(0.05)

    kept, orphans = [], []

"""
MAIN = "\nsys.exit(supervisor.main(None, control, worker))\n"


@contextmanager
def supervised(parts: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a supervisor with the *parts* that the test gives it; its heartbeat is what it writes to standard output."""
    script = textwrap.dedent(FRAME) + textwrap.dedent(parts) + MAIN
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def read_until(running: subprocess.Popen[bytes], wanted: bytes, times: int = 1) -> bytes:
    """Return what the supervisor has written when *wanted* is in it as often as that."""
    assert running.stdout is not None
    text = b""
    while text.count(wanted) < times:
        piece = os.read(running.stdout.fileno(), 4096)
        assert piece, (text, running.stderr.read() if running.stderr else "")
        text += piece
    return text


def ended(running: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, error = running.communicate(timeout=30)
    return running.returncode, out.decode(), error.decode()


SUCCEEDED = """
    def control(config, end, pulse):
        receive(end, "begin")
        if orphans:
            print(json.dumps({"kept": len(kept), "orphans": [len(each) for each in orphans]}), flush=True)
            return  # a control that ends well ends the daemon, and its workers with it
        fork(end)
        beat(end)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for uid in range(3):
                send(end, {"op": "keep", "keys": [f"{uid}/{each}" for each in range(DESCRIPTORS)]}, [listener.fileno()] * DESCRIPTORS)
            send(end, {"op": "drop", "uid": "2"})
        raise SystemExit(1)
"""  # noqa: E501


def test_a_control_that_fails_is_succeeded_with_what_it_left() -> None:
    """Input: two workers' worth of listeners more than a message can carry. Verdict: all are handed
    on, and the worker with its channel.
    """
    with supervised(SUCCEEDED) as running:
        code, out, error = ended(running)
    assert code == 0, error
    assert json.loads(out.replace("beat ", "").replace("end ", "")) == {"kept": 400, "orphans": [1]}
    assert "beat " in out
    assert out.rstrip().endswith("end")
    assert "control died (status 1); it is started again" in error


def test_a_control_that_never_comes_up_ends_the_daemon_with_its_status() -> None:
    with supervised("def control(config, end, pulse): raise SystemExit(3)") as running:
        assert ended(running)[0] == 3


def test_a_first_control_that_fails_after_it_began_ends_the_daemon_too() -> None:
    """Input: its admin port is taken, say: there are workers and listeners by then. Verdict: the
    end and its status, not one start after the other.
    """
    begun = """
    def control(config, end, pulse):
        receive(end, "begin")
        fork(end)
        send(end, {"op": "keep", "keys": ["u/1"]}, [0])
        raise SystemExit(3)
    """
    with supervised(begun) as running:
        code, _, error = ended(running)
    assert (code, error) == (3, "")


def test_a_control_that_reads_nothing_does_not_end_the_heartbeat() -> None:
    """Input: control is stopped, and what it is to be told fills its channel. Verdict: beats as
    long as the worker's loop turns.
    """
    flood = """
    def control(config, end, pulse):
        receive(end, "begin")
        fork(end)
        beat(end)
        for number in range(3000):  # each makes an answer
            send(end, {"op": "still"})
            beat(end)
        print("flooded ", end="", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    with supervised(flood) as running:
        read_until(running, b"flooded")
        read_until(running, b"beat ", 20)


def test_it_beats_while_a_workers_loop_turns_and_no_longer() -> None:
    """Input: the only worker hangs. Verdict: the heartbeat ages; it goes on when the loop turns again."""
    hangs = """
    def control(config, end, pulse):
        receive(end, "begin")
        fork(end)
        beat(end)
        for felt in (True, False, True):
            assert receive(end, "beats")[0]["felt"] is felt
        print("seen ", flush=True)
        signal.pause()

    def worker(end, pulse):
        pulse.turn()
        time.sleep(1.5)
        while True:
            pulse.turn()
            time.sleep(0.05)
    """
    with supervised(hangs) as running:
        read_until(running, b"seen")


def test_what_control_says_wrongly_is_said_and_ends_nothing() -> None:
    """Input: fewer descriptors than keys, an unknown operation's leftovers, no JSON. Verdict:
    nothing is kept of it, nothing leaks, it goes on.
    """
    wrong = """
    def control(config, end, pulse):
        receive(end, "begin")
        before = len(os.listdir(f"/proc/{os.getppid()}/fd"))
        send(end, {"op": "keep", "keys": ["u/1", "u/2", "u/3"]}, [0, 0])
        send(end, {"op": "fork", "number": 1}, [0])
        send(end, {"op": "unknown"}, [0, 0])
        send(end, {}, [0])
        end.send(b"{")
        send(end, {"op": "drop", "uid": "u"})
        send(end, {"op": "still"})
        receive(end, "stilled")
        assert len(os.listdir(f"/proc/{os.getppid()}/fd")) == before
        raise SystemExit(7 if "u" in json.dumps(kept) else 0)
    """
    with supervised(wrong) as running:
        code, _, error = ended(running)
    assert code == 0, error
    assert error.count("cannot be obeyed") == 4


def test_a_control_that_hangs_is_succeeded() -> None:
    """Input: control's loop turned, and turns no more. Verdict: killed, and its successor gets the
    worker; one that never turned is left alone.
    """
    hangs = """
    supervisor.CONTROL_SILENT_SECONDS = 0.5

    def control(config, end, pulse):
        receive(end, "begin")
        if orphans:
            return
        fork(end)
        beat(end)
        time.sleep(1)
        pulse.turn()
        signal.pause()
    """
    with supervised(hangs) as running:
        code, _, error = ended(running)
    assert code == 0, error
    assert "has not turned for 0.5 s; it is killed" in error


def test_a_worker_that_a_dead_control_asked_for_is_not_forked() -> None:
    """Input: the machine has no room for a worker, and control dies meanwhile. Verdict: only its
    successor's is forked, of which somebody knows.
    """
    crowded = """
    forks, fork_now = iter((True, False)), os.fork

    def fork_if_there_is_room():
        if not next(forks, True):
            raise OSError(11, "no room")
        return fork_now()

    os.fork = fork_if_there_is_room

    def control(config, end, pulse):
        receive(end, "begin")
        ours, theirs = pair()
        send(end, {"op": "fork", "number": 2 if kept else 1}, [theirs.fileno(), ours.fileno()])
        if kept:
            assert receive(end, "forked")[0]["number"] == 2
            return
        beat(end)
        send(end, {"op": "keep", "keys": ["u/1"]}, [0])
        raise SystemExit(1)
    """
    with supervised(crowded) as running:
        code, _, error = ended(running)
    assert code == 0, error
    assert "a worker cannot be forked: no room" in error


def test_a_control_that_does_not_stop_is_killed() -> None:
    deaf = """
    supervisor.PATIENCE_SECONDS = 0.5

    def control(config, end, pulse):
        receive(end, "begin")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        fork(end)
        beat(end)
        while True:
            signal.pause()
    """
    with supervised(deaf) as running:
        read_until(running, b"beat ")
        running.terminate()
        code, out, error = ended(running)
    assert (code, out.split()[-1]) == (256 - 9, "end"), error


def test_a_pulse_of_the_past_or_of_a_time_to_come_is_none() -> None:
    """Input: a worker that was taken over writes what it likes. Verdict: only a turn within the bound counts."""
    pulses = Pulses()
    pulse, other = pulses.claim(), pulses.claim()
    assert not pulses.felt(10)
    pulse.turn()
    assert pulses.felt(10)
    pulse._page[:8] = (time.monotonic_ns() + 10**15).to_bytes(8, sys.byteorder)
    assert not pulses.felt(10)
    other.turn()
    assert pulses.felt(10)
    pulses.free(other)
    assert not pulses.felt(10)
    assert len({pulses.claim().number for _ in range(2 * SLOTS)}) == SLOTS - 1
