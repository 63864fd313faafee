"""What passes between the machines, as this host sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nodeagent.lab.demo.wiretap import Seen, examine


@contextmanager
def wire(found: list[bytes]) -> Iterator[None]:
    """Record what passes between the machines meanwhile; *found* gets the recording."""
    links = json.loads(subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout)
    link = next(each["ifname"] for each in links if any(a["local"] == "192.168.56.1" for a in each["addr_info"]))
    argv = ["tcpdump", "-i", link, "-U", "--immediate-mode", "-s", "0", "-w", "-", "tcp"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tcpdump:
        assert tcpdump.stderr is not None
        tcpdump.stderr.readline()  # it listens
        try:
            yield
            time.sleep(0.5)  # nothing shows that the last packet has been written
        finally:
            tcpdump.send_signal(signal.SIGINT)
            found.append(tcpdump.communicate()[0])


def seen(act: Callable[[str], None]) -> Seen:
    """Return what *act*, given a marker to send, showed of it on the wire."""
    marker = uuid.uuid4().hex
    found: list[bytes] = []
    with wire(found):
        act(marker)
    return examine(found[0], marker.encode())
