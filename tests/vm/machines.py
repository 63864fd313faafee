"""The two machines: Vagrant makes and destroys them, ssh does everything else."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.vm import libvirt
from tests.vm.host import Host
from tests.vm.telling import Failed, going_on, run, tell

ROOT = Path(__file__).parents[2]
NAMES = ("node-a", "node-b")
BOX = "nodeagent-lab"
COMPARE = {"kvm": "--quick", "qemu": "--quick --modes direct,nodeagent,envoy --seconds 4"}
"""Options of `nodeagent compare`, by driver: setting the other two modes up takes an emulated processor 20 minutes."""
UP_SECONDS = 1800.0
"""For both machines on emulated processors, from nothing to provisioned."""
DOWN_SECONDS = 120.0
SSH_SECONDS = 180.0
GONE = 255
"""The status of an ssh that did not get through."""


@dataclass(frozen=True)
class Answer:
    """How a command on a machine ended."""

    status: int
    output: str
    errors: str


@dataclass(frozen=True)
class Machine:
    """A machine that is up."""

    name: str
    ssh: Path
    """A configuration for ssh that knows it."""

    def ask(self, command: str, *, given: str = "", seconds: float = SSH_SECONDS) -> Answer:
        """Run *command* by the shell as root, with *given* as its input; return how it ended."""
        argv = ["ssh", "-F", str(self.ssh), self.name, f"sudo sh -c {shlex.quote(command)}"]
        with going_on(f"{self.name}: {command[:70]}"):
            try:
                done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return Answer(GONE, "", f"no answer within {seconds:.0f} s")
        return Answer(done.returncode, done.stdout, done.stderr.strip())

    def run(self, command: str, *, given: str = "", seconds: float = SSH_SECONDS) -> str:
        """As :meth:`ask`; return what it printed. Raises Failed when it fails."""
        answer = self.ask(command, given=given, seconds=seconds)
        if answer.status:
            raise Failed(
                f"{self.name}: {command}: status {answer.status}: {(answer.errors or answer.output)[-1500:].strip()}"
            )
        return answer.output

    def rows(self, command: str) -> list[dict[str, object]]:
        """Return the list that a command of the agent prints as JSON. Raises Failed."""
        found: list[dict[str, object]] = json.loads(self.run(f"nodeagent {command} -o json"))
        return found

    def write(self, path: str, text: str) -> None:
        """Put *text* into a file, whole or not at all."""
        self.run(f"cat > {path}.new && mv {path}.new {path}", given=text)

    def send(self, file: Path, path: str) -> None:
        """Copy *file* to *path* on the machine. Raises Failed."""
        argv = ["scp", "-q", "-F", str(self.ssh), str(file), f"{self.name}:{path}"]
        with going_on(f"{self.name}: {file.name}"):
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{self.name}: {file} cannot be copied: {done.stderr.strip()}")

    def pod(self, name: str, command: str) -> Answer:
        """Run *command* in the pod *name* of this machine; return how it ended."""
        return self.ask(f"/opt/nodeagent-lab/pods.py exec {name} {command}")


@dataclass(frozen=True)
class Lab:
    """The machines that are up, and where what they leave is kept."""

    nodes: dict[str, Machine]
    folder: Path
    environment: dict[str, str]
    """Vagrant's."""

    @property
    def a(self) -> Machine:
        return self.nodes["node-a"]

    @property
    def b(self) -> Machine:
        return self.nodes["node-b"]

    def vagrant(self, *words: str, seconds: float) -> None:
        """Run Vagrant. Raises Failed when it fails, or takes longer than *seconds*."""
        argv = ["vagrant", *words]
        run(" ".join(argv), argv, self.folder / "vagrant.log", seconds, self.environment)

    def keep(self) -> Path:
        """Write down what the machines can still say of a failure; return the folder, which has their consoles too."""
        for name, node in self.nodes.items():
            for what, command in (
                ("journal", "journalctl --no-pager --boot"),
                ("state", "systemctl --no-pager status; ip address; ip route; nodeagent get pods -o json"),
            ):
                answer = node.ask(command, seconds=60)
                (self.folder / f"{name}.{what}").write_text(answer.output + answer.errors)
        return self.folder


@contextmanager
def up(
    box: Path, files: Path, host: Host, folder: Path, names: Sequence[str] = NAMES, *, bare: bool = False
) -> Iterator[Lab]:
    """Bring the machines *names* up by Vagrant from *box*, provisioned with *files*; they are destroyed at the end.

    *bare*: as the box has them. Raises Failed; *folder* holds consoles and logs.
    """
    work = folder / "work"
    environment = libvirt.environment(work) | {
        "NODEAGENT_BOX": BOX,
        "NODEAGENT_FILES": str(files.resolve()),
        "NODEAGENT_DRIVER": host.driver,
        "NODEAGENT_COMPARE": COMPARE[host.driver],
        "NODEAGENT_CONSOLES": str(folder),
        "VAGRANT_CWD": str(ROOT / "vagrant"),
    }
    lab = Lab({}, folder, environment)
    with libvirt.running(work / "libvirt"):
        try:
            lab.vagrant("box", "add", "--name", BOX, str(box), seconds=UP_SECONDS)
            asked = ["--no-provision"] if bare else []
            lab.vagrant("up", "--provider=libvirt", *asked, *names, seconds=UP_SECONDS)
            config = subprocess.run(
                ["vagrant", "ssh-config", *names], env=environment, capture_output=True, text=True, check=False
            )
            if config.returncode:
                raise Failed(f"vagrant ssh-config: {config.stderr.strip()[-500:]}; does another run use {folder}?")
            ssh = work / "ssh"
            ssh.write_text(
                f"{config.stdout}\nHost *\n  ControlMaster auto\n  ControlPath {work}/%h.socket\n  ControlPersist 600\n"
                "  ConnectTimeout 20\n  ServerAliveInterval 10\n  LogLevel ERROR\n"
            )
            yield replace(lab, nodes={name: Machine(name, ssh) for name in names})
        finally:
            tell("destroying the machines")
            with suppress(Failed):  # the room's end is theirs too
                lab.vagrant("destroy", "--force", seconds=DOWN_SECONDS)
