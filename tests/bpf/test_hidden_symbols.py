"""Nodes that hide the kernel's symbols (kernel.kptr_restrict, a masked /proc/kallsyms): nothing needs them."""

from __future__ import annotations

import json
import subprocess

from nodeagent.redirect import hooks
from tests.bpf.test_check import CHECK


def test_all_programs_are_loaded_without_the_kernels_symbols() -> None:
    """Input: /proc/kallsyms is empty. Verdict: every program is compiled, loaded and carries
    connections, the bypass's too, which reads kernel memory.
    """
    hidden = 'mount --make-rprivate / && mount --bind /dev/null /proc/kallsyms && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", hidden, "sh", *CHECK, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    rows = {row["feature"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, rows
    assert all(row["ok"] for row in rows.values() if row["needed"])
    assert rows["unread bytes past TCP"]["ok"], "the bypass can be had too"
    assert {hook.name for hook in hooks.HOOKS} < rows.keys()
