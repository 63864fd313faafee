"""Uninstalling with the rights and mounts that a container of the agent has: what is the collector's is another
user's there, and its folder is a mount.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from nodeagent.istio import USER
from tests.uninstalled import document

ROOT = Path(__file__).parents[2]
RIGHTS = "-all,+chown,+dac_read_search"
CONTAINED = 'mount --bind "$1" "$1"; shift; exec "$@"'
UNINSTALL = """
import json, sys
from nodeagent.config import AgentConfig
from nodeagent.uninstall import uninstall
print(json.dumps([each.path for each in uninstall(AgentConfig.model_validate_json(sys.argv[1]))]))
"""


def test_folders_of_the_collectors_user_go_and_a_mount_stays_empty(tmp_path: Path) -> None:
    state = tmp_path / "logs"
    sink = state / "buffer" / "all"
    sink.mkdir(parents=True)
    (sink / "cursor").touch()
    for path, mode in ((sink, 0o700), (state / "buffer", 0o700), (state, 0o2770)):
        path.chmod(mode)
        os.chown(path, USER, -1)
    contained = ["unshare", "--mount", "sh", "-ec", CONTAINED, "sh", str(state)]
    limited = ["setpriv", "--bounding-set", RIGHTS, "--inh-caps", "-all", "--no-new-privs"]
    command = [*contained, *limited, sys.executable, "-c", UNINSTALL, json.dumps(document(tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(state / "buffer")]
    assert list(state.iterdir()) == []
