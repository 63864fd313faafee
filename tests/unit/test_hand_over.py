"""One daemon takes over from another, with controls and workers of the test's own: what is handed
over, who beats, and what is left when one of them dies, whenever that is.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeagent.hand_over import SOCKET
from tests.waiting import DEADLINE, eventually

ROOT = Path(__file__).parents[2]
DAEMON = """
    import logging, os, signal, socket, sys, time
    from pathlib import Path
    from nodeagent import agent, hand_over, supervisor
    from nodeagent.channel import decode, pair, receive
    from nodeagent.errors import ControlError
    from nodeagent.forking import CONTROL, Role
    from nodeagent.messages import *
    from nodeagent.redirect import heartbeat
    from nodeagent.wire import encode

    logging.basicConfig(level=logging.INFO)
    folder = Path(sys.argv[1])
    heartbeat.beat = lambda descriptor: os.write(1, b"beat\\n")
    heartbeat.end = lambda descriptor: os.write(1, b"end\\n")
    supervisor.RESPAWN_SECONDS = 0.1
    lasts = False  # as where no kubelet starts again what ends

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def send(end, message):
        payload, descriptors = encode(message)
        socket.send_fds(end, [payload], descriptors)

    def control(end, pulse):
        end.setblocking(True)
        kept = {}
        send(end, Prepared())
        say("control")
        while True:
            message = decode(receive(end), FROM_SUPERVISOR)
            match message:
                case Kept():
                    kept.update(message.files)
                case Begin():
                    say("begun", *sorted(kept))
                    begin(end, kept)
                case Resign():
                    say("resigned")
                    resign(end)
                case Superseded():
                    say("superseded")
                    step_down()
                    raise SystemExit(0)

    def begin(end, kept):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            send(end, Keep({"u/inbound/4/0": listener.fileno(), "u/netns": 0, "later/kind": 0}))
        ours, theirs = pair()
        send(end, Fork(WORKER, 1, theirs.fileno(), ours.fileno()))
        send(end, BeginHeartbeat(0.25, 1))

    def resign(end):
        with socket.create_server(("127.0.0.1", 0)) as port:
            send(end, Resigned({"ports/admin/127.0.0.1": port.fileno()}))

    def step_down():
        pass

    def worker(end, pulse):
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
        while True:
            pulse.turn()
            time.sleep(0.05)  # a loop that turns
"""
MAIN = """
    def main():
        try:
            folders = {"runtimeDirectory": folder / "run", "redirect.pinDirectory": folder / "pins"}
            with agent.owned(folders, lasts=lasts) as estate:
                say("owns", "alone" if estate.predecessor is None else "beside")
                roles = {CONTROL: Role(control), WORKER: Role(worker, beats=True)}
                status = supervisor.main(roles, estate, 1.0)
        except ControlError as error:
            sys.exit(f"nodeagent: {error}")
        say("exit", status)
        sys.exit(status)
    main()
"""


@dataclass
class Daemon:
    """A daemon, and what it has said."""

    process: subprocess.Popen[bytes]
    text: str = ""
    seen: int = 0
    """Of the text: how much was waited for already."""
    errors: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0]:
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                return
            self.text += piece.decode()

    def says(self, words: str) -> str:
        """Wait until it has said a line that begins with *words*, after what was waited for before; return the line."""

        def found() -> str:
            self.read()
            at = self.seen
            for line in self.text[self.seen :].splitlines(keepends=True):
                at += len(line)
                if line.endswith("\n") and line.startswith(words):
                    self.seen = at
                    return line.strip()
            return ""

        return eventually(found, f"{words!r} is said; it was: {self.text[-600:]!r}")

    def ends(self) -> int:
        """Wait for its end; return its status."""
        status = self.process.wait(DEADLINE)
        self.read()
        return status

    def goes(self) -> None:
        """Let it go on that waits for the end of its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons of one node, of which none stays."""
    started: list[Daemon] = []

    def begin(changes: str = "") -> Daemon:
        script = textwrap.dedent(DAEMON) + textwrap.dedent(changes) + textwrap.dedent(MAIN)
        argv = [sys.executable, "-c", script, str(tmp_path)]
        pipe = subprocess.PIPE
        daemon = Daemon(subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0))
        started.append(daemon)
        return daemon

    yield begin
    for daemon in started:
        daemon.kill()
        assert daemon.process.stdout is not None
        daemon.process.stdout.close()
        daemon.goes()


def running(start: Start, changes: str = "") -> Daemon:
    daemon = start(changes)
    daemon.says("begun")
    daemon.says("beat")
    return daemon


def goes_on(daemon: Daemon) -> None:
    """It beats, from now on as before."""
    daemon.read()
    daemon.seen = len(daemon.text)
    daemon.says("beat")
    daemon.says("beat")


def test_everything_is_handed_over_and_the_old_one_ends_without_ending_the_heartbeat(start: Start) -> None:
    """Verdict: the newcomer has listeners and network, not what it does not know, and the ports,
    which it passes to control alone; the old one says no end to the kernel; a third takes over from it.
    """
    old = running(start)
    new = start()
    assert new.says("owns") == "owns beside"
    old.says("resigned")
    assert new.says("begun") == "begun ports/admin/127.0.0.1 u/inbound/4/0 u/netns"
    old.says("superseded")
    assert old.ends() == 0
    assert "end\n" not in old.text
    goes_on(new)
    third = start()
    third.says("begun")
    new.says("superseded")
    assert new.ends() == 0
    goes_on(third)


LOOKED_BEFORE = """
    own = {}

    def stat(path, before=Path.stat, **rest):
        found = before(path, **rest)
        return own.setdefault(path, found) if path.name == hand_over.SOCKET else found
    Path.stat = stat

    def step_down_late(self, over, before=supervisor.Supervisor._step_down):
        path = folder / "run" / hand_over.SOCKET
        while not os.path.exists(path) or os.stat(path).st_ino == own[path].st_ino:
            time.sleep(0.01)
        before(self, over)
    supervisor.Supervisor._step_down = step_down_late
"""


NEVER_AGAIN = """
    def open_once(self, before=hand_over.HandOver.open):
        if self._listener is None:
            before(self)
    hand_over.HandOver.open = open_once
"""


def test_the_old_one_leaves_the_socket_to_its_successor_that_listens_at_this_very_moment(start: Start) -> None:
    """Input: the old one has looked whose the socket is just before the successor has its own there. Verdict: a third
    daemon takes over.
    """
    old = running(start, LOOKED_BEFORE)
    running(start, NEVER_AGAIN)
    old.says("superseded")
    assert old.ends() == 0
    start().says("begun")


def test_a_socket_that_an_earlier_release_removed_is_there_again(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "run" / SOCKET
    daemon = running(start)
    eventually(path.exists, "it listens")
    path.unlink()
    eventually(path.exists, "it listens again")
    start().says("begun")
    daemon.says("superseded")
    assert daemon.ends() == 0


SLOW = """
    def step_down():
        time.sleep(600)  # connections are open
"""


def test_an_old_daemon_drains_whatever_it_is_told_until_its_successor_ends_for_good(start: Start) -> None:
    """Input: SIGTERM, as a kubelet sends when the new pod is ready. Verdict: it goes on; a successor's
    death changes nothing; a successor that is stopped ends it.
    """
    hastened = """
    def control(end, pulse, before=control):
        global step_down

        def step_down():
            end.setblocking(True)
            assert isinstance(decode(receive(end), FROM_SUPERVISOR), Hasten)
            say("hastened")
        before(end, pulse)
    """
    old = running(start, hastened)
    new = running(start)
    old.says("superseded")
    old.process.send_signal(signal.SIGTERM)
    goes_on(new)
    assert old.process.poll() is None
    new.process.send_signal(signal.SIGTERM)
    old.says("hastened")
    assert old.ends() == 0


STUCK = """
    def begin(end, kept):
        say("stuck")
        time.sleep(600)  # it takes over, and never beats
"""
UNPREPARED = """
    def control(end, pulse):
        say("unprepared")
        time.sleep(600)  # it never can begin
"""
FAILS = """
    def begin(end, kept):
        raise SystemExit(3)
"""


@pytest.mark.parametrize(("changes", "stage"), [(UNPREPARED, "unprepared"), (STUCK, "stuck")])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_newcomer_that_ends_before_it_beats_has_changed_nothing(
    start: Start, changes: str, stage: str, number: int
) -> None:
    """Verdict: the daemon beats on; where it had resigned, a new control takes the node back, with all that
    was kept; nothing is said to the kernel about an end; and another newcomer takes over.
    """
    old = running(start)
    new = start(changes)
    new.says(stage)
    new.process.send_signal(number)
    new.ends()
    assert "end\n" not in new.text
    if stage == "stuck":
        old.says("resigned")
        assert old.says("begun") == "begun later/kind u/inbound/4/0 u/netns"
    goes_on(old)
    assert "end\n" not in old.text
    running(start)
    old.says("superseded")


def test_a_newcomer_whose_control_fails_ends_and_the_daemon_goes_on(start: Start) -> None:
    old = running(start)
    assert start(FAILS).ends() == 3
    old.says("begun")
    goes_on(old)


def test_a_newcomer_that_never_beats_gives_up(start: Start) -> None:
    old = running(start)
    new = start("supervisor.TAKE_OVER_SECONDS = 0.5\n" + textwrap.dedent(STUCK))
    assert new.ends() != 0
    assert "its predecessor goes on" in new.text
    old.says("begun")
    goes_on(old)


def test_a_daemon_that_dies_before_it_has_handed_anything_over_is_succeeded_all_the_same(start: Start) -> None:
    old = running(start, "def resign(end): time.sleep(600)")
    new = start()
    old.says("resigned")
    old.kill()
    assert new.says("begun") == "begun"
    goes_on(new)
    assert "is dead; this one goes on alone" in new.text
    third = running(start)
    assert third.text.startswith("owns beside")


def test_a_daemon_that_dies_after_it_has_handed_everything_over_leaves_it(start: Start) -> None:
    old = running(start)
    new = start(
        """
    def begin(end, kept, before=begin):
        say("handed", *sorted(kept))
        assert sys.stdin.buffer.read(1) == b""  # until the old one is dead
        before(end, kept)
    """
    )
    assert "u/inbound/4/0" in new.says("handed")
    old.kill()
    new.goes()
    goes_on(new)


@pytest.mark.parametrize("how", ["it hangs", "it is dead"])
def test_a_control_that_cannot_resign_is_ended(start: Start, how: str) -> None:
    """Verdict: who is dead writes nothing either; what the supervisor keeps is handed over."""
    what = {"it hangs": "time.sleep(600)", "it is dead": "os._exit(1)"}[how]
    old = running(start, f"supervisor.RESIGN_SECONDS = 0.3\ndef resign(end): {what}")
    new = start()
    assert new.says("begun") == "begun u/inbound/4/0 u/netns"
    goes_on(new)
    old.ends()
    assert "end\n" not in old.text


def test_a_control_that_dies_while_it_drains_takes_its_workers_along(start: Start) -> None:
    """Without it they would hear of no policy."""
    old = running(start, "def step_down(): os._exit(1)")
    new = running(start)
    old.says("superseded")
    assert old.ends() == 1
    assert "end\n" not in old.text
    goes_on(new)


def test_a_stop_waits_for_who_is_about_to_take_over(start: Start) -> None:
    """Input: SIGTERM while a newcomer prepares. Verdict: the daemon beats until the newcomer does."""
    old = running(start)
    new = start(
        """
    def control(end, pulse, before=control):
        say("prepares")
        while not (folder / "go").exists():
            time.sleep(0.02)  # it prepares
        before(end, pulse)
    """
    )
    new.says("prepares")
    old.process.send_signal(signal.SIGTERM)
    goes_on(old)
    Path(new.process.args[-1], "go").touch()  # type: ignore[index]
    old.says("superseded")
    assert old.ends() == 0
    assert "end\n" not in old.text
    goes_on(new)


def test_a_stop_is_done_when_who_was_about_to_take_over_dies(start: Start) -> None:
    old = running(start)
    new = start(STUCK)
    new.says("stuck")
    old.process.send_signal(signal.SIGTERM)
    eventually(lambda: (old.read(), "it waits for the one" in old.text)[1], "the daemon waits")
    new.kill()
    old.ends()
    assert old.text.count("end\n") == 1


COMING = """
    def begin(end, kept, before=begin):
        before(end, kept)
        send(end, Successor(True))
        signal.signal(signal.SIGUSR2, lambda *_: send(end, Successor(False)))  # when the test says so
        say("coming", os.getpid())
"""


def awaiting(start: Start) -> tuple[Daemon, int]:
    """Return a daemon that was told to end while another one is coming, and its control's pid."""
    old = start(COMING)
    control = int(old.says("coming").split()[1])
    goes_on(old)  # what control has said before the beats was heard
    old.process.send_signal(signal.SIGTERM)
    eventually(lambda: (old.read(), "it waits for the one that is coming" in old.text)[1], "the daemon waits")
    goes_on(old)
    return old, control


def test_a_stop_waits_for_who_is_coming_and_has_not_called(start: Start) -> None:
    """Input: SIGTERM before the successor has begun, as on a starved node. Verdict: the daemon goes on, also
    when the first that calls dies half-way, until one has taken over; no end is told to the kernel.
    """
    old, _ = awaiting(start)
    first = start(STUCK)
    first.says("stuck")
    first.kill()
    goes_on(old)
    new = running(start)
    old.says("superseded")
    assert old.ends() == 0
    assert "end\n" not in old.text
    goes_on(new)


def test_a_stop_is_done_when_nobody_comes_any_more(start: Start) -> None:
    old, control = awaiting(start)
    os.kill(control, signal.SIGUSR2)
    old.ends()
    assert "does not come; this one ends" in old.text


LASTS = """
    lasts = True  # as on a cluster
"""
DRAINS = """
    lasts = True
    supervisor.WATCH_SECONDS = 0.1

    def control(end, pulse, before=control):
        global step_down

        def step_down():
            end.setblocking(True)
            while not isinstance(decode(receive(end), FROM_SUPERVISOR), Hasten):
                pass  # connections are open
            say("hastened")
            while (folder / "open").exists():
                time.sleep(0.02)
        before(end, pulse)
"""
IMPATIENT = """
    lasts = True
    waits = supervisor.Supervisor._await
    supervisor.Supervisor._await = lambda self, whom, seconds: waits(self, whom, 0.3)
"""
TAKEN_OVER = "begun ports/admin/127.0.0.1 u/inbound/4/0 u/netns"


def superseding(start: Start, old: Daemon, changes: str = LASTS) -> Daemon:
    """Return a daemon that has taken over from *old*."""
    new = running(start, changes)
    old.says("superseded")
    return new


@pytest.mark.parametrize("changes", [LASTS, DRAINS], ids=["it has drained", "it drains"])
def test_a_daemon_that_took_over_and_is_told_to_end_gives_the_node_back(start: Start, changes: str) -> None:
    """Input: SIGTERM, as where a rollout is undone, or a pod is deleted, before the new pod counts as ready.
    Verdict: it beats until the old one does; no end is told to the kernel; and that one can be succeeded.
    """
    old = running(start, changes)
    new = superseding(start, old)
    new.process.send_signal(signal.SIGTERM)
    assert old.says("begun") == TAKEN_OVER
    new.says("superseded")
    assert new.ends() == 0
    goes_on(old)
    goes_on(superseding(start, old))
    assert "end\n" not in new.text + old.text


@pytest.mark.parametrize("last", ["old", "new"])
def test_the_node_goes_back_and_forth(start: Start, last: str) -> None:
    """Input: a rollout, undone, and so again; the *last* that has the node is told to end, beside nobody. Verdict:
    it ends, and says so to the kernel, as nobody before did.
    """
    old = running(start, LASTS)
    for _ in range(2):
        new = superseding(start, old)
        new.process.send_signal(signal.SIGTERM)
        new.says("superseded")
        assert new.ends() == 0
        goes_on(old)
    has = old
    if last == "new":
        has = superseding(start, old)
        old.process.send_signal(signal.SIGTERM)
        assert old.ends() == 0
        assert "end\n" not in old.text
    has.process.send_signal(signal.SIGTERM)
    has.ends()
    assert has.text.count("end\n") == 1


def test_a_daemon_that_dies_again_and_again_after_it_took_over_leaves_the_node_to_the_one_before(start: Start) -> None:
    """Input: a newcomer that is killed when it beats, and started again, as a kubelet does."""
    old = running(start, LASTS)
    for _ in range(3):
        superseding(start, old).kill()
        assert old.says("begun") == "begun", "nobody handed anything over"
        goes_on(old)


def test_who_drains_cuts_what_is_open_when_nobody_has_had_the_node_for_a_while(start: Start) -> None:
    old = running(start, f"{textwrap.dedent(DRAINS)}\nsupervisor.VACANT_SECONDS = 0.3")
    superseding(start, old).kill()
    old.says("hastened")
    old.says("begun")
    goes_on(old)


def test_who_drains_does_so_while_the_one_that_took_over_is_started_again(start: Start) -> None:
    """Input: it is killed, and started again at once. Verdict: it has the node alone, and what is open at the one
    before goes on.
    """
    old = running(start, f"{textwrap.dedent(DRAINS)}\nsupervisor.VACANT_SECONDS = 600")
    superseding(start, old).kill()
    again = running(start, LASTS)
    assert again.text.startswith("owns alone")
    goes_on(again)
    old.read()
    assert "hastened" not in old.text


@pytest.mark.parametrize("first", ["old", "new"])
def test_when_both_are_told_to_end_both_do(start: Start, tmp_path: Path, first: str) -> None:
    """Input: the old one has connections open, and both are told to end, as where the DaemonSet is deleted."""
    (tmp_path / "open").touch()
    old = running(start, DRAINS)
    new = superseding(start, old)
    both = [old, new] if first == "old" else [new, old]
    for each in both:
        each.process.send_signal(signal.SIGTERM)
    old.says("hastened")
    (tmp_path / "open").unlink()
    assert old.ends() == 0
    new.ends()
    assert new.text.count("end\n") == 1
    assert "end\n" not in old.text


def test_who_waits_for_the_one_before_waits_for_no_longer_than_it_lives(start: Start, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    old = running(start, DRAINS)
    new = superseding(start, old)
    new.process.send_signal(signal.SIGTERM)
    old.says("hastened")
    goes_on(new)
    old.kill()
    new.ends()
    assert "the daemon before has ended and takes nothing back; this one ends" in new.text
    assert new.text.count("end\n") == 1


def test_who_waits_for_one_of_a_release_that_takes_nothing_back_ends(start: Start) -> None:
    old = running(start, f"{textwrap.dedent(LASTS)}\nsupervisor.Supervisor._last = lambda *_: signal.pause()")
    new = superseding(start, old, IMPATIENT)
    new.process.send_signal(signal.SIGTERM)
    new.ends()
    assert "nobody has taken over; this daemon ends" in new.text


def test_what_was_to_be_given_back_and_is_another_ones_by_then_stays_that_ones(start: Start, tmp_path: Path) -> None:
    """Input: a third daemon comes before the old one has drained, which was to have the node again."""
    (tmp_path / "open").touch()
    old = running(start, DRAINS)
    new = superseding(start, old)
    new.process.send_signal(signal.SIGTERM)
    old.says("hastened")
    third = superseding(start, new)
    assert new.ends() == 0
    (tmp_path / "open").unlink()
    children = Path(f"/proc/{old.process.pid}/task/{old.process.pid}/children")
    eventually(lambda: not children.read_text(), "the old one has drained")
    goes_on(third)
    old.process.send_signal(signal.SIGTERM)
    assert old.ends() == 0
    assert old.text.count("begun") == 1
    goes_on(third)


def test_a_third_daemon_is_refused_while_one_takes_over(start: Start) -> None:
    running(start)
    second = start(STUCK)
    second.says("stuck")
    third = start()
    assert third.ends() == 1
    assert "another daemon is about to take over" in third.text
    assert "is in use by" in third.text


def test_a_daemon_that_ends_is_waited_for(start: Start) -> None:
    old = running(start, "supervisor.PATIENCE_SECONDS = 0.5")
    old.process.send_signal(signal.SIGTERM)  # this control heeds it at once
    new = start()
    assert new.says("owns") == "owns alone"
    goes_on(new)


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b'{"op": "TakeOver"}',
        b'{"op": "Hello", "versions": [99], "release": "9"}',
        b'{"op": "Hello", "versions": [1]}',
        b"memory file",
    ],
)
def test_who_says_what_none_says_is_hung_up_on_and_the_daemon_goes_on(
    start: Start, tmp_path: Path, payload: bytes
) -> None:
    old = running(start)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(tmp_path / "run" / SOCKET))
        caller.settimeout(DEADLINE)
        caller.send(payload)
        answer = caller.recv(4096)
        assert not answer or b"Unwelcome" in answer
    goes_on(old)
    assert (tmp_path / "run" / SOCKET).stat().st_mode & 0o777 == 0o600
    running(start)
    old.says("superseded")


def test_who_says_nothing_keeps_nobody_out(start: Start, tmp_path: Path) -> None:
    old = running(start)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(tmp_path / "run" / SOCKET))
        running(start)
        old.says("superseded")


def test_a_daemon_of_other_folders_is_refused(start: Start, tmp_path: Path) -> None:
    """Input: the same runtime directory, another folder for pins. Verdict: an error that says so, and
    the daemon that runs goes on.
    """
    old = running(start)
    script = textwrap.dedent(DAEMON) + textwrap.dedent(MAIN).replace('"pins"', '"other"')
    (tmp_path / "other").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert (
        f"redirect.pinDirectory {tmp_path}/other: the daemon that runs on this node has another folder" in done.stderr
    )
    goes_on(old)


def test_a_daemon_of_a_release_before_there_was_a_hand_over_is_named(start: Start) -> None:
    running(start, "hand_over.HandOver.open = lambda self: None")
    new = start()
    assert new.ends() == 1
    assert "it is of a release that hands nothing over, or has not come up yet" in new.text


def test_no_descriptor_is_left_behind(start: Start) -> None:
    """Input: two newcomers that die while they take over. Verdict: as many are open as before."""
    old = running(start)

    def opened() -> int:
        return len(os.listdir(f"/proc/{old.process.pid}/fd"))

    before = opened()
    for _ in range(2):
        new = start(STUCK)
        new.says("stuck")
        new.kill()
        old.says("begun")
        goes_on(old)
        # one more listener and network are kept in the place of those before, and one more worker
    eventually(lambda: opened() <= before + 4, f"{opened()} are open, {before} were")
