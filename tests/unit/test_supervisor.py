"""The first process, with a control and workers of the test's own: what it keeps, that it beats,
that nothing makes it wait or end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nodeagent.pulse import SLOTS, Pulses
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
FRAME = """
    import dataclasses, json, os, signal, socket, sys, time
    from nodeagent import control_process, supervisor
    from nodeagent.channel import DESCRIPTORS, decode, pair, receive
    from nodeagent.wire import encode
    from nodeagent.messages import *
    from nodeagent.redirect import heartbeat
    from nodeagent.forking import CONTROL, Role
    from nodeagent.service_manager import ServiceManager

    heartbeat.beat = lambda descriptor: os.write(descriptor, b"beat ")
    heartbeat.end = lambda descriptor: os.write(descriptor, b"end ")
    supervisor.SILENT_SECONDS = 0.5

    def read(end, wanted):
        end.setblocking(True)
        while True:
            message = decode(receive(end), FROM_SUPERVISOR)
            if isinstance(message, wanted):
                return message
            if isinstance(message, Kept):
                kept.update(message.files)
            if isinstance(message, Orphan):
                orphans.append(message)

    def send(end, message):
        payload, descriptors = encode(message)
        say(end, payload, descriptors)

    def say(end, payload, descriptors=()):
        end.setblocking(True)
        socket.send_fds(end, [payload], list(descriptors))

    def ask_for(end, role=WORKER, number=1):
        ours, theirs = pair()
        send(end, Fork(role, number, theirs.fileno(), ours.fileno()))

    def fork(end):
        ask_for(end)
        read(end, Forked)

    def beat(end):
        send(end, BeginHeartbeat(0.25, 1))

    def worker(end, pulse):
        while True:
            pulse.turn()
            time.sleep(0.05)  # a loop that turns

    kept, orphans = {}, []

"""
MAIN = """
estate = supervisor.Estate(manager=ServiceManager.of(os.environ))
sys.exit(supervisor.main({CONTROL: Role(control), WORKER: Role(worker, beats=True)}, estate))
"""


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
    out, error = running.communicate(timeout=60)
    return running.returncode, out.decode(), error.decode()


SUCCEEDED = """
    def control(end, pulse):
        read(end, Begin)
        if orphans:
            print(json.dumps({"kept": len(kept), "orphans": len(orphans)}), flush=True)
            return  # a control that ends well ends the daemon, and its workers with it
        fork(end)
        beat(end)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for uid in range(3):
                send(end, Keep({f"{uid}/{each}": listener.fileno() for each in range(DESCRIPTORS)}))
            send(end, Drop("2"))
        raise SystemExit(1)
"""


def test_a_control_that_fails_is_succeeded_with_what_it_left() -> None:
    """Input: two workers' worth of listeners more than a message can carry. Verdict: all are handed
    on, and the worker with its channel.
    """
    with supervised(SUCCEEDED) as running:
        code, out, error = ended(running)
    assert code == 0, error
    assert json.loads(out.replace("beat ", "").replace("end ", "")) == {"kept": 400, "orphans": 1}
    assert "beat " in out
    assert out.rstrip().endswith("end")
    assert "control died (status 1); it is started again" in error


def test_a_control_that_never_comes_up_ends_the_daemon_with_its_status() -> None:
    with supervised("def control(end, pulse): raise SystemExit(3)") as running:
        assert ended(running)[0] == 3


def test_a_first_control_that_fails_after_it_began_ends_the_daemon_too() -> None:
    """Input: its admin port is taken, say: there are workers and listeners by then. Verdict: the
    end and its status, not one start after the other.
    """
    begun = """
    def control(end, pulse):
        read(end, Begin)
        fork(end)
        send(end, Keep({"u/1": 0}))
        raise SystemExit(3)
    """
    with supervised(begun) as running:
        code, _, error = ended(running)
    assert (code, error) == (3, "")


def test_controls_that_never_come_up_again_leave_no_more_and_more_workers() -> None:
    """Input: control dies, and so does each that follows, when it has filled its slot: its port is another
    one's by now, say. Verdict: the worker of the one that was up goes on, and the others' end.
    """
    loop = """
    supervisor.RESPAWN_SECONDS = 0.1
    begun = os.memfd_create("begun")  # a byte for each control

    def control(end, pulse):
        read(end, Begin)
        os.write(begun, b".")
        if len(orphans) == 1 and os.fstat(begun).st_size > 4:
            print("few", flush=True)
            return
        fork(end)
        if not orphans:
            beat(end)
            read(end, Beats)
            time.sleep(0.3)
        raise SystemExit(1)
    """
    with supervised(loop) as running:
        code, out, error = ended(running)
    assert (code, out.count("few")) == (0, 1), error


def test_a_control_that_reads_nothing_does_not_end_the_heartbeat() -> None:
    """Input: control is stopped, and what it is to be told fills its channel. Verdict: beats as
    long as the worker's loop turns.
    """
    flood = """
    def control(end, pulse):
        read(end, Begin)
        fork(end)
        beat(end)
        for number in range(3000):  # each makes an answer
            send(end, Still())
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
    def control(end, pulse):
        read(end, Begin)
        fork(end)
        beat(end)
        for felt in (True, False, True):
            assert read(end, Beats).felt is felt
        print("seen ", flush=True)
        signal.pause()

    def worker(end, pulse):
        pulse.turn()
        time.sleep(1.5)  # hangs
        while True:
            pulse.turn()
            time.sleep(0.05)  # a loop that turns
    """
    with supervised(hangs) as running:
        read_until(running, b"seen")


WRONG = {
    "no JSON": 'say(end, b"{")',
    "no object": 'say(end, b"[1]", [0])',
    "no name": 'say(end, b"{}", [0])',
    "an unknown message": """say(end, b'{"op": "Unknown"}', [0, 0])""",
    "a message of another direction": "send(end, Begin())",
    "fewer descriptors than names": """say(end, b'{"op": "Keep", "files": ["u/2", "u/3"]}', [0])""",
    "more descriptors than fields": """say(end, b'{"op": "Drop", "owner": "u"}', [0])""",
    "more descriptors than fit": "say(end, encode(Keep({str(each): 0 for each in range(250)}))[0], [0] * 250)",
    "a field of another type": """say(end, b'{"op": "Drop", "owner": 1}')""",
    "a field that is missing": """say(end, b'{"op": "Signal", "pid": 1}')""",
    "a field that is unknown": """say(end, b'{"op": "Still", "now": true}')""",
    "an unknown role": 'ask_for(end, role="collector")',
    "control's own role": "ask_for(end, role=CONTROL)",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_control_that_says_what_no_control_says_is_succeeded(what: str) -> None:
    """Verdict: the one who said it ends, by name; the worker and what was kept go on, nothing of
    the message is kept, and no descriptor leaks.
    """
    wrong = f"""
    supervisor.RESPAWN_SECONDS = 0.1
    open_before = len(os.listdir(f"/proc/{{os.getpid()}}/fd")) - 1  # the folder itself

    def control(end, pulse):
        read(end, Begin)
        if orphans:
            print(json.dumps(sorted(kept)), len(os.listdir(f"/proc/{{os.getppid()}}/fd")) - open_before, flush=True)
            return
        fork(end)
        send(end, BeginHeartbeat(60, 1))
        send(end, Keep({{"u/1": 0}}))
        {WRONG[what]}
        signal.pause()
    """
    with supervised(wrong) as running:
        code, out, error = ended(running)
    assert code == 0, error
    assert error.count("control says what no control says (") == 1
    assert "control died (status -9); it is started again" in error
    # the heart, the worker's end, what is kept, two of the wake-up pipe, control's channel
    assert out.replace("beat ", "").replace("end ", "").split("\n")[0] == '["u/1"] 6'


SHORT_OF_DESCRIPTORS = """
    import resource

    def room(descriptors):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    def control(end, pulse):
        read(end, Begin)
        if orphans:
            print("succeeded", flush=True)
            return
        fork(end)
        beat(end)
        send(end, Keep({str(each): 0 for each in range(20)}))
        send(end, Still())
        read(end, Stilled)
        limit = len(os.listdir(f"/proc/{os.getppid()}/fd")) + ROOM
        resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (limit, 4096))
        beat(end)
        raise SystemExit(1)

    def worker(end, pulse):
        for _ in range(40):
            pulse.turn()
            time.sleep(0.05)  # a loop that turns
        resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (4096, 4096))
        while True:
            pulse.turn()
            time.sleep(0.05)  # a loop that turns
"""


@pytest.mark.parametrize(
    ("room", "said"),
    [(-1, "control cannot be forked: Too many open files"), (4, "control cannot be told Kept and is killed")],
)
def test_a_supervisor_that_may_have_no_more_descriptors_goes_on(room: int, said: str) -> None:
    """Input: no room for a channel to control, or not for all of what was kept. Verdict: it beats,
    and control is succeeded when there is room again.
    """
    with supervised(SHORT_OF_DESCRIPTORS.replace("ROOM", str(room))) as running:
        code, out, error = ended(running)
    assert code == 0, error
    assert said in error
    assert "succeeded" in out


def test_a_control_that_hangs_is_succeeded() -> None:
    """Input: control's loop turned, and turns no more. Verdict: killed, and its successor gets the
    worker; one that never turned is left alone.
    """
    hangs = """
    control_process.SILENT_SECONDS = 0.5

    def control(end, pulse):
        read(end, Begin)
        if orphans:
            return
        fork(end)
        beat(end)
        time.sleep(1)  # longer than silence is borne, and it never turned
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

    def control(end, pulse):
        read(end, Begin)
        ask_for(end, number=2 if kept else 1)
        if kept:
            assert read(end, Forked).number == 2
            return
        beat(end)
        send(end, Keep({"u/1": 0}))
        raise SystemExit(1)
    """
    with supervised(crowded) as running:
        code, _, error = ended(running)
    assert code == 0, error
    assert "a worker cannot be forked: no room" in error


def test_a_control_that_does_not_stop_is_killed() -> None:
    deaf = """
    supervisor.PATIENCE_SECONDS = 0.5

    def control(end, pulse):
        read(end, Begin)
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
    pulse = pulses.claim()
    other = pulses.claim()
    assert not pulse.felt(10)
    pulse.turn()
    assert pulse.felt(10)
    assert not other.felt(10)
    pulse._page[:8] = (time.monotonic_ns() + 10**15).to_bytes(8, sys.byteorder)
    assert not pulse.felt(10)
    other.turn()
    assert other.felt(10)
    pulses.free(other)
    assert not other.felt(10)
    assert len({pulses.claim().number for _ in range(2 * SLOTS)}) == SLOTS - 1


LASTING = """
    import os, signal, sys
    from nodeagent import supervisor
    from nodeagent.forking import CONTROL, Role
    from nodeagent.signals import Signals

    class Over:  # another daemon has the node, and nothing is left to drain
        over = True
        hears = True
        stage = "over"
        under_way = False
        def close(self): pass
        def waits_for(self): return {}
        def drop(self): pass

    roles = {CONTROL: Role(lambda end, pulse: None)}
    regain = (lambda returned: None) if sys.argv[1] == "lasts" else None
    estate = supervisor.Estate(hand_over=Over(), regain=regain)
    lasting = supervisor.Supervisor(roles, estate, 0.0, Signals(supervisor._SIGNALS))
    lasting._start_control = lambda: None
    sys.exit(lasting.run())
"""


@pytest.mark.parametrize("lasts", ["lasts", "ends"])
def test_a_daemon_that_was_succeeded_lasts_until_it_is_told_to_end(lasts: str) -> None:
    """By itself it would be started again by a kubelet, and take the node back."""
    command = [sys.executable, "-c", textwrap.dedent(LASTING), lasts]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            if lasts == "lasts":
                eventually(lambda: _waits_in_poll(process.pid))
                process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def _waits_in_poll(pid: int) -> bool:
    """Say whether the process waits in poll(2), with its handler of SIGTERM in place."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) and "\nState:\tS" in status
