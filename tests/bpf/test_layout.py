"""bpf/nodeagent.h and nodeagent/redirect/layout.py say the same: sizes, offsets, counters."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from nodeagent.redirect import layout, loader

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "settings": layout.Settings,
    "pod": layout.Pod,
    "port_key": layout.PortKey,
    "listener_key": layout.ListenerKey,
    "endpoint": layout.Endpoint,
    "original": layout.Original,
    "source": layout.Source,
    "destination": layout.Destination,
    "verdict_key": layout.VerdictKey,
    "verdict": layout.Verdict,
    "service": layout.Service,
    "backend_key": layout.BackendKey,
    "flow_key": layout.FlowKey,
    "flow_end": layout.FlowEnd,
    "kernel_flow": layout.KernelFlow,
    "flow_total_key": layout.FlowTotalKey,
    "flow_total": layout.FlowTotal,
}


def test_python_and_c_agree(tmp_path: Path) -> None:
    wanted, prints = [], []
    for name, mirror in STRUCTS.items():
        wanted.append(f"{name} {ctypes.sizeof(mirror)}")
        prints.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in mirror._fields_:
            member = getattr(mirror, field)
            wanted.append(f"{name}.{field} {member.offset} {member.size}")
            prints.append(f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field}));')
    for index, counter in enumerate(layout.COUNTERS):
        wanted.append(f"{counter} {index}")
        prints.append(f'printf("{counter} %d\\n", {counter.upper()});')
    wanted.append(f"constants {layout.OUTBOUND} {layout.INBOUND} {len(layout.COUNTERS)} {layout.ADDRESS_BYTES}")
    wanted.append(f"kernel {layout.ANY_SOURCE} {layout.BY_SOURCE} {layout.FLOW_HTTP} {layout.FLOW_BYPASS}")
    prints.append('printf("constants %d %d %d %zu\\n", OUTBOUND, INBOUND, COUNTERS, sizeof(struct address));')
    prints.append('printf("kernel %d %d %d %d\\n", ANY_SOURCE, BY_SOURCE, FLOW_HTTP, FLOW_BYPASS);')
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "nodeagent.h"\nint main(void) {{\n{chr(10).join(prints)}\nreturn 0;\n}}\n')
    subprocess.run(["cc", f"-I{loader.source_directory()}", str(source), "-o", str(tmp_path / "layout")], check=True)
    said = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == wanted


def test_every_struct_of_the_header_is_mirrored() -> None:
    header = (loader.source_directory() / "nodeagent.h").read_text()
    declared = {line.split()[1] for line in header.splitlines() if line.startswith("struct ") and line.endswith("{")}
    assert declared == {"address", *STRUCTS}


def test_addresses_are_canonical() -> None:
    for text in ("10.0.0.1", "fd00::1", "::", "2001:db8::a:0:0:1"):
        assert layout.unpack_address(layout.pack_address(text)) == text
    assert layout.unpack_address(layout.pack_address("::ffff:10.0.0.1")) == "10.0.0.1"
