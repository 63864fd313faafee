"""What is tried on the two machines, in this order; each check returns what it has seen, in words.

A check raises Failed, or AssertionError with what was expected. They build on each other: the client
asks from node-a, ``near`` answers there, ``far`` on node-b.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nodeagent.compare import page
from nodeagent.compare.result import ComparisonResult
from nodeagent.lab.demo.wiretap import examine
from tests.unit.proxy import tls_client
from tests.vm import documented, kernel_tls
from tests.vm.looks import CURL, SECONDS, all_enrolled, asked, eventually, get, state_of
from tests.vm.machines import NAMES, ROOT, Answer, Lab, Machine
from tests.vm.tap import seen, wire
from tests.vm.telling import Failed, going_on

NEAR = "10.42.1.3"
NEAR_SERVICE = "10.43.0.3"
"""Which no kube-proxy knows, as there is none."""
FAR = ("10.42.2.2", "[fd00:42:2::2]")
CLIENT = "spiffe://cluster.local/ns/lab/sa/client"
LEGACY_IDENTITY = "spiffe://cluster.local/ns/machines/sa/legacy"
LEGACY = "legacy-node-b"
"""What the agent calls node-b's legacy.service."""
GUEST = "/var/tmp/nodeagent-lab"
"""What runs on a machine and is no part of the lab."""
PYTHON = "/usr/lib/nodeagent/bin/python"
PINS = "/sys/fs/bpf/nodeagent"
COMPARE_SECONDS = 1500.0
"""For the labs, and two rounds of their load."""


def check(lab: Lab) -> str:
    """``nodeagent check`` finds nothing missing on either machine."""
    words = []
    for name, node in lab.nodes.items():
        answer = node.ask("nodeagent check -o json")
        (lab.folder / f"{name}.check.json").write_text(answer.output)
        rows = json.loads(answer.output)
        absent = [row["feature"] for row in rows if row["state"] == "absent"]
        missing = [f"{row['feature']}: {row['detail']}" for row in rows if row["state"] == "missing"]
        assert not missing, f"{name}: {'; '.join(missing)}"
        kernel = node.run("uname -r").strip()
        words.append(f"{name} Linux {kernel}, {len(rows) - len(absent)} ok, absent: {', '.join(absent) or 'nothing'}")
    return "; ".join(words)


def enrolment(lab: Lab) -> str:
    """All pods are captured, on pure cgroup v2 under systemd."""
    for node in lab.nodes.values():
        eventually(lambda node=node: all_enrolled(node), f"{node.name}: all pods are enrolled")
    states = state_of(lab.a) | state_of(lab.b)
    return ", ".join(sorted(states))


def confinement(lab: Lab) -> str:
    """Whatever runs of the agent does so under its AppArmor profile, which refused it nothing so far."""
    for name, node in lab.nodes.items():
        rows = [line.split(maxsplit=1) for line in node.run("ps -e -o unit:60=,label:60=").splitlines()]
        labels = {label.strip() for unit, label in rows if unit == "nodeagent.service"}
        assert labels == {"nodeagent (enforce)"}, f"{name}: the agent's processes are {labels or 'none'}"
        refused = node.run("journalctl --no-pager --dmesg --grep 'apparmor=.DENIED. .*profile=.nodeagent.' || true")
        assert "DENIED" not in refused, f"{name}: AppArmor refused: {refused[-800:]}"
    return "every process of the agent under its profile, in force; nothing refused"


def capture(lab: Lab) -> str:
    """Requests go through the agents, and the server is told who asks."""
    for address in FAR:
        eventually(
            lambda address=address: CLIENT in get(lab.a, f"http://{address}:8080/capture").output,
            f"far at {address} is told that {CLIENT} asks",
        )
    return "client → far by IPv4 and IPv6, with the client's identity in X-Forwarded-Client-Cert"


def mutual_tls(lab: Lab) -> str:
    """Nothing of a request is plaintext between the machines; what is asked past the mesh is, so the tap works."""
    outside = seen(lambda marker: _ask_outside(lab.a, f"http://{FAR[0]}:8080/{marker}"))
    assert outside.marked_bytes, "the tap saw nothing of a request from outside of the mesh: it proves nothing"
    urls = [f"http://{address}:8080/" for address in FAR]
    inside = seen(lambda marker: _ask(lab.a, " ".join(url + marker for url in urls)))
    assert inside.records, f"the tap saw {inside.packets} packets and no TLS record"
    assert inside.marked_bytes == 0, f"{inside.marked_bytes} bytes of the request were plaintext on the wire"
    proof = f"the tap saw {outside.marked_bytes} of a request from outside"
    return f"{inside.packets} packets, {inside.records} TLS records, plaintext bytes 0 ({proof})"


def _ask_outside(node: Machine, url: str) -> None:
    node.run(f"{CURL} --output /dev/null {url}")


STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: lab}
spec: {mtls: {mode: STRICT}}
"""
NO_SECRET = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secret, namespace: lab}
spec:
  selector: {matchLabels: {app: far}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/lab/sa/client]}}]
    to: [{operation: {paths: [/secret]}}]
"""


def policy(lab: Lab) -> str:
    """A folder of YAML on each machine is in force: STRICT keeps strangers out, DENY one path of a known client."""
    for node in lab.nodes.values():
        node.write("/etc/nodeagent/policies/strict.yaml", STRICT)
        node.write("/etc/nodeagent/policies/no-secret.yaml", NO_SECRET)
    url = f"http://{FAR[0]}:8080"
    eventually(lambda: get(lab.a, f"{url}/secret").output.endswith("403"), "/secret is refused with 403")
    assert asked(lab.a, f"{url}/other").endswith("200"), "another path is refused too"
    stranger = lab.a.ask(f"{CURL} --output /dev/null {url}/other")
    assert stranger.status, "under STRICT, plaintext from outside of the mesh was answered"
    for node in lab.nodes.values():
        node.run("rm /etc/nodeagent/policies/no-secret.yaml")
    eventually(lambda: get(lab.a, f"{url}/secret").output.endswith("200"), "/secret is allowed again")
    return f"DENY 403 and 200 beside it; STRICT: a stranger got curl's status {stranger.status}; taken back: 200"


def kernel_path(lab: Lab) -> str:
    """Within a node connections run pod to pod; a bypass that applications could tell is refused with a reason."""
    eventually(lambda: "kernel" in str(_near(lab)["paths"]), "near is on the kernel path, by get pods")
    for url in (f"http://{NEAR}:8080/kernel", f"http://{NEAR_SERVICE}/kernel"):
        assert asked(lab.a, url).startswith("near"), f"{url} was not answered by near"
    rows = [row for row in lab.a.rows("flows --last 2") if "near" in str(row["destination"])]
    paths = [str(row["path"]) for row in rows]
    assert paths == ["kernel", "kernel"], f"near was reached by {paths or 'nothing that flows knows'}"
    told = json.dumps(_near(lab))
    assert "bypass" in told, f"nothing is said of near's nodeagent.io/bypass: {told}"
    return f"near reached at its address and at its Service's by: {paths[0]}; its bypass: {_said(told, 'bypass')}"


def _near(lab: Lab) -> dict[str, object]:
    return next(row for row in lab.a.rows("get pods") if row["pod"] == "near")


def _said(text: str, word: str) -> str:
    """Return the piece of *text* between quotation marks that has *word*."""
    return next(piece for piece in re.findall(r'"([^"]*)"', text) if word in piece)[:120]


def service(lab: Lab) -> str:
    """A service of node-b's systemd, which is no pod, is asked and asks under mTLS, as itself."""
    eventually(lambda: all_enrolled(lab.b) and LEGACY in state_of(lab.b), f"{LEGACY} is enrolled")
    name = f"/var/lib/nodeagent/mesh/objects/Pod.machines.{LEGACY}.json"
    told = lab.b.run(f"cat {name}")
    lab.a.write(name, told)
    lab.a.run(f"touch /var/lib/nodeagent/mesh/enrolled/{json.loads(told)['metadata']['uid']}")
    url = f"http://{json.loads(told)['status']['podIP']}:8080"
    eventually(lambda: CLIENT in get(lab.a, url).output, "the service is told that client asks")
    shown = seen(lambda marker: _ask(lab.a, f"{url}/{marker}"))
    assert shown.marked_bytes == 0, f"{shown.marked_bytes} bytes of a request to it were plaintext on the wire"
    answers = f"near is told that {LEGACY_IDENTITY} asks"
    eventually(lambda: LEGACY_IDENTITY in get(lab.b, f"http://{NEAR}:8080/", "legacy").output, answers)
    return f"client → legacy.service → near, as {LEGACY_IDENTITY}; plaintext bytes 0"


def _ask(node: Machine, url: str) -> None:
    asked(node, url)


def as_documented(lab: Lab) -> str:
    """Each command of docs/vm.md answers, with the identities that are said there."""
    for node in lab.nodes.values():
        eventually(lambda node=node: all_enrolled(node), f"{node.name}: all pods are enrolled")
    asked_for = list(documented.commands(documented.PAGE.read_text()))
    for each in asked_for:
        what = f"{each.machine}: {each.command}: answers with {each.identities or 'something'}"
        eventually(lambda each=each: as_said(lab.nodes[each.machine].ask(each.command), each.identities), what)
    return f"{len(asked_for)} commands, {', '.join(name for each in asked_for for name in each.identities)}"


SHOP = """\
[Service]
ExecStart=/usr/bin/python3 -m http.server 8080
"""


def own_service(lab: Lab) -> str:
    """By the commands of docs/install.md a service of node-a's is in the mesh, where STRICT protects it."""
    commands, settings = documented.service(documented.INSTALL.read_text(), "shop")
    lab.a.write("/etc/systemd/system/shop.service", SHOP)
    lab.a.write("/etc/nodeagent/policies/machines.yaml", STRICT.replace("namespace: lab", "namespace: machines"))
    lab.a.run("sh -e -s", given=commands)
    lab.a.run("cat >> /etc/nodeagent/agent.yaml && systemctl reload nodeagent", given=settings, seconds=SECONDS)
    eventually(lambda: all_enrolled(lab.a) and "shop-node-a" in state_of(lab.a), "shop-node-a is enrolled")
    url = "http://10.77.1.10:8080/"
    eventually(lambda: get(lab.a, url).output.endswith("200"), f"{url} answers a pod")
    stranger = lab.a.ask(f"{CURL} --output /dev/null {url}")
    assert stranger.status, "under STRICT, plaintext from outside of the mesh was answered"
    return f"shop.service answers client, and a stranger gets curl's status {stranger.status}"


def as_said(answer: Answer, words: Sequence[str]) -> bool:
    """Say whether *answer* is one, with all *words* in it."""
    return not answer.status and bool(answer.output.strip()) and all(word in answer.output for word in words)


def logs(lab: Lab) -> str:
    """Each line of a log that is rotated while it is written is delivered once, and what a service writes to systemd's
    journal as that service's.
    """
    kept = "/var/lib/nodeagent/logs/kept.log"
    mark = uuid.uuid4().hex[:8]
    log = "/var/lib/nodeagent-lab/volumes/lab-far/log/app.log"
    for part in range(3):
        urls = " ".join(f"http://{FAR[0]}:8080/{mark}-{part}-{number}" for number in range(5))
        asked(lab.a, urls)
        if part < 2:
            lab.b.run(f"mv {log} {log}.{part}")
    eventually(lambda: lab.b.ask(f"grep --count {mark} {kept}").output.strip() == "15", f"15 lines are in {kept}")
    lines = re.findall(rf"{mark}-\d-\d", lab.b.run(f"cat {kept}"))
    assert len(lines) == len(set(lines)) == 15, f"{len(lines)} lines of 15, {len(set(lines))} different"
    entry = f"entry-{mark}"
    lab.b.pod("legacy", f"systemd-cat sh -c 'echo {entry}; sleep 1'")  # as long as journald may ask whose it is
    eventually(lambda: lab.b.ask(f"grep {entry} {kept}").output.count(LEGACY) == 1, f"{entry} is {LEGACY}'s")
    return "15 lines over 2 rotations, each delivered once; an entry of the journal is its service's"


@contextmanager
def asking(lab: Lab, outcome: dict[str, int]) -> Iterator[None]:
    """Have the client ask ``far`` one request after the other meanwhile; *outcome* counts what came of them."""
    lab.a.run("rm -f /tmp/stop /tmp/asked /tmp/asked.errors")
    loop = (
        f"while [ ! -e /tmp/stop ]; do {CURL} --output /dev/null --write-out '%{{http_code}}\\n' "
        f"http://{FAR[0]}:8080/steady >> /tmp/asked 2>> /tmp/asked.errors; sleep 0.5; done"
    )
    lab.a.write("/tmp/asking.sh", loop)
    lab.a.run("setsid /opt/nodeagent-lab/pods.py exec client sh /tmp/asking.sh > /dev/null 2>&1 < /dev/null &")
    eventually(lambda: "200" in lab.a.ask("cat /tmp/asked").output, "the client asks")
    try:
        yield
    finally:
        lab.a.run("touch /tmp/stop")
        eventually(lambda: lab.a.ask("pgrep -f '[a]sking.sh'").status == 1, "the client has ended")
    for code in lab.a.run("cat /tmp/asked").split():
        outcome[code] = outcome.get(code, 0) + 1


def reload(lab: Lab) -> str:
    """``systemctl reload`` brings new workers, and no request is lost."""
    outcome: dict[str, int] = {}
    with asking(lab, outcome):
        for node in lab.nodes.values():
            node.run("systemctl reload nodeagent", seconds=SECONDS)
    assert set(outcome) == {"200"}, f"requests meanwhile: {outcome}; {lab.a.run('cat /tmp/asked.errors')}"
    return f"{outcome['200']} requests meanwhile, all answered"


def killed(lab: Lab) -> str:
    """A daemon that is killed is started again by systemd; meanwhile nothing reaches ``far`` in plaintext."""
    before = lab.b.run("systemctl show --property MainPID --value nodeagent").strip()
    found: list[bytes] = []
    marker = uuid.uuid4().hex
    with wire(found):
        lab.b.run("systemctl kill --signal KILL nodeagent")
        get(lab.a, f"http://{FAR[0]}:8080/{marker}")
        eventually(lambda: all_enrolled(lab.b), "node-b's agent is there again")
        eventually(lambda: get(lab.a, f"http://{FAR[0]}:8080/{marker}").output.endswith("200"), "far answers again")
    after = lab.b.run("systemctl show --property MainPID --value nodeagent").strip()
    assert after not in (before, "0"), f"MainPID was {before} and is {after}"
    shown = examine(found[0], marker.encode())
    assert shown.marked_bytes == 0, f"{shown.marked_bytes} bytes of requests were plaintext meanwhile"
    return f"pid {before} → {after} by systemd, far answers, plaintext bytes meanwhile 0"


def reboot(lab: Lab) -> str:
    """A machine that boots has its pods in the mesh again without a hand."""
    begun = time.monotonic()
    boot = lab.b.run("cat /proc/sys/kernel/random/boot_id").strip()
    lab.b.ask("systemctl reboot", seconds=20)
    with going_on("node-b reboots"):
        eventually(lambda: _boot(lab) not in ("", boot), "node-b has booted")
        eventually(lambda: all_enrolled(lab.b), "node-b's pods are enrolled again")
    eventually(lambda: CLIENT in get(lab.a, f"http://{FAR[0]}:8080/rebooted").output, "far answers again")
    return f"far answers with the client's identity {time.monotonic() - begun:.0f} s later"


def _boot(lab: Lab) -> str:
    subprocess.run(["ssh", "-F", lab.b.ssh, "-O", "exit", lab.b.name], capture_output=True, check=False)
    return lab.b.ask("cat /proc/sys/kernel/random/boot_id", seconds=25).output.strip()


def beside_the_kernel(lab: Lab) -> str:
    """The kernel's TLS carries every byte right; what it costs beside the agent's own is said."""
    lab.a.run("modprobe tls")
    for module in (kernel_tls, tls_client):
        path = f"{GUEST}/{module.__name__.replace('.', '/')}.py"
        lab.a.run(f"mkdir -p $(dirname {path})")
        lab.a.write(path, inspect.getsource(module))
    return lab.a.run(f"cd {GUEST} && {PYTHON} -m {kernel_tls.__name__} 4 5", seconds=SECONDS).strip()


def compare(lab: Lab) -> str:
    """`nodeagent compare` on node-a, each mode that is asked for with its work done; its page is on this machine."""
    folder = lab.folder.parent / "compare"
    lab.vagrant("provision", "node-a", "--provision-with", "tools,compare", seconds=COMPARE_SECONDS)
    told: ComparisonResult = json.loads(lab.a.run("cat /var/tmp/nodeagent-compare.json"))
    page.write(told, folder)
    left_out = [f"{each['what']}: {each['why']}" for each in told["missing"]]
    undone = [f"{mode}: {fault}" for mode, work in told["work"].items() for fault in work["failed"]]
    assert not (left_out or undone), f"{'; '.join(left_out + undone)}; the report: {folder}"
    return f"{'; '.join(_rates(told))}; the report: {folder.relative_to(ROOT)}"


def _rates(told: ComparisonResult) -> Iterator[str]:
    """Yield in words how many requests each mode answered in a second, by workload and connections."""
    cells = {(run["workload"], run["connections"]): [] for run in told["runs"]}
    for run in told["runs"]:
        cells[run["workload"], run["connections"]].append(f"{run['mode']} {run['requests_per_second']:,.0f}/s")
    for (workload, connections), rates in cells.items():
        yield f"{workload}, {connections}: {', '.join(rates)}"


def uninstall(lab: Lab) -> str:
    """The package goes, and nothing of the agent is left in the kernel or on disk."""
    for node in lab.nodes.values():
        node.run("dpkg --purge nodeagent", seconds=SECONDS)
        left = node.run(
            f"ls -d {PINS} /etc/nodeagent /var/lib/nodeagent /run/nodeagent /usr/lib/nodeagent 2>/dev/null || true"
        ).split()
        assert not left, f"{node.name}: left: {', '.join(left)}"
        assert not node.run("ls /sys/fs/bpf").split(), f"{node.name}: pins are left in /sys/fs/bpf"
    answer = asked(lab.a, f"http://{FAR[0]}:8080/after")
    assert answer == "far \n200", f"far answers {answer!r}"
    return "no file, no pin; the pods talk as if there had been none"


@dataclass(frozen=True)
class Check:
    name: str
    attempt: Callable[[Lab], str]
    nodes: Sequence[str] = NAMES
    """The machines that it takes."""


CHECKS = (
    Check("check", check),
    Check("enrolment", enrolment),
    Check("capture", capture),
    Check("mTLS", mutual_tls),
    Check("policy", policy),
    Check("kernel path", kernel_path),
    Check("service", service),
    Check("documents", as_documented),
    Check("own service", own_service, ("node-a",)),
    Check("logs", logs),
    Check("reload", reload),
    Check("kill -9", killed),
    Check("AppArmor", confinement),
    Check("reboot", reboot),
    Check("kernel TLS", beside_the_kernel, ("node-a",)),
    Check("compare", compare, ("node-a",)),
    Check("uninstall", uninstall),
)


def chosen(names: str) -> list[Check]:
    """Return the checks *names*, separated by commas, in the order in which they are tried; all for an empty text.

    Raises Failed for a name that no check has.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = {each.name for each in CHECKS}
    if unknown := wanted - known:
        raise Failed(f"CHECKS: {', '.join(sorted(unknown))}: allowed: {', '.join(each.name for each in CHECKS)}")
    return [each for each in CHECKS if not wanted or each.name in wanted]


def memory(lab: Lab) -> str:
    """Return what both agents take, by systemd's account."""
    words = []
    for name, node in lab.nodes.items():
        taken = int(node.run("systemctl show --property MemoryCurrent --value nodeagent").strip())
        words.append(f"{name} {taken >> 20} MiB")
    return ", ".join(words)
