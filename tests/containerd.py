"""A real containerd (Debian's) in a folder of its own, and pods that are made by CRI calls alone, as
a kubelet would make them: no cluster, no registry, no container besides the sandbox's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc

from nodeagent.protocols import cri_pb2 as cri
from tests.waiting import eventually

IMAGE = "localhost/pause:test"
PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
NETWORKS = ("10.99.1.0/24", "fd00:99:1::/64")
_MEDIA = "application/vnd.oci.image"


class Containerd:
    """Started in *folder*. Its pods' root is ``kubepods`` below a cgroup of its own, as a nested node has it."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.folder = folder
        self.socket = folder / "containerd.sock"
        self.bundles = folder / "state" / "io.containerd.runtime.v2.task" / "k8s.io"
        self._top = f"cri-{uuid.uuid4().hex[:12]}"
        self.root = tree / self._top / "kubepods"
        self._process: subprocess.Popen[bytes] | None = None
        self.pods: set[str] = set()

    def start(self) -> None:
        """Start it, or start it again; return when it answers."""
        self._configure()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "-c", str(self.folder / "config.toml")], stdout=log, stderr=log, start_new_session=True
            )

        def answers() -> bool:
            assert self._process is not None and self._process.poll() is None, self.log()
            try:
                self._call("ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse)
            except grpc.RpcError:  # "server is not initialized yet"
                return False
            return True

        eventually(answers, "containerd answers")

    def stop(self) -> None:
        """End it as an upgrade does: pods go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def import_pause(self) -> None:
        """Build the image of the sandboxes' only process, and import it."""
        (self.folder / "pause.c").write_text(PAUSE)
        pause = self.folder / "pause"
        subprocess.run(["gcc", "-static", "-Os", "-o", pause, self.folder / "pause.c"], check=True)
        archive = self.folder / "pause.tar"
        archive.write_bytes(image(pause.read_bytes()))
        done = self._ctr("-n", "k8s.io", "images", "import", str(archive))
        assert done.returncode == 0, done.stderr

    def run_pod(self, uid: str, *, name: str = "web", attempt: int = 0, host_network: bool = False) -> str:
        """Make the sandbox of a pod, and return its id."""
        network = cri.NODE if host_network else cri.POD
        options = cri.NamespaceOption(network=network, pid=cri.CONTAINER)
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace="default", attempt=attempt),
            hostname="" if host_network else name,
            labels={"io.kubernetes.pod.uid": uid},
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=f"/{self._top}/kubepods/burstable/pod{uid}",
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=options),
            ),
        )
        made = self._call("RunPodSandbox", cri.RunPodSandboxRequest(config=config), cri.RunPodSandboxResponse)
        sandbox = str(made.pod_sandbox_id)
        self.pods.add(sandbox)
        return sandbox

    def remove_pod(self, sandbox: str) -> None:
        """Stop the sandbox and forget it."""
        self._call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox), cri.StopPodSandboxResponse)
        asked = cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        self._call("RemovePodSandbox", asked, cri.RemovePodSandboxResponse)
        self.pods.discard(sandbox)

    def remove(self) -> None:
        """Remove everything, whatever state it is in."""
        with contextlib.suppress(grpc.RpcError):
            for sandbox in list(self.pods):
                self.remove_pod(sandbox)
        self.stop()
        for pid in self._shims():
            os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(str(self.folder)):
                subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        eventually(self._without_cgroups, "its cgroups are removed, in every hierarchy")
        shutil.rmtree(self.folder)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def _shims(self) -> Iterator[int]:
        """Yield what runs on for this containerd."""
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"containerd-shim-runc-v2") and os.fsencode(self.socket) in words:
                    yield int(directory.name)

    def _without_cgroups(self) -> bool:
        tops = [Path(line.split()[1]) / self._top for line in Path("/proc/mounts").read_text().splitlines()
                if line.split()[2] in ("cgroup", "cgroup2")]  # fmt: skip
        for top in filter(Path.exists, tops):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return not any(map(Path.exists, tops))

    def _configure(self) -> None:
        networks = self.folder / "cni"
        networks.mkdir(parents=True, exist_ok=True)
        plugin = {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "ipam"),
                "ranges": [[{"subnet": network}] for network in NETWORKS],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        (networks / "10-test.conflist").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "test", "plugins": [plugin]})
        )
        (self.folder / "config.toml").write_text(
            f"""version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
        )

    def _ctr(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ctr", "-a", str(self.socket), *words], capture_output=True, text=True, check=False)

    def _call(self, name: str, request: Any, answer: Any) -> Any:
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            method = channel.unary_unary(
                f"/runtime.v1.RuntimeService/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return method(request, timeout=60)


def image(program: bytes) -> bytes:
    """Return an OCI image (image-spec: image-layout) of one layer with *program* as ``/pause``."""
    layer = _tar({"pause": program}, mode=0o755)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media: str) -> dict[str, object]:
        name = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{name}"] = content
        return {"mediaType": f"{_MEDIA}.{media}", "digest": f"sha256:{name}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(layer, "layer.v1.tar")],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": IMAGE}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return _tar({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs})


def _tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            about.mode = mode
            archive.addfile(about, BytesIO(content))
    return made.getvalue()
