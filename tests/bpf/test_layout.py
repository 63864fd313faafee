"""The headers in bpf/ and their mirrors in nodeagent/redirect/ say the same: sizes, offsets, numbers."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from nodeagent.redirect import bypass_layout, http_layout, layout, loader

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "settings": layout.SettingsValue,
    "pod": layout.PodValue,
    "denied": layout.DeniedValue,
    "port_key": layout.PortKey,
    "listener_key": layout.ListenerKey,
    "endpoint": layout.EndpointKey,
    "original": layout.OriginalValue,
    "source": layout.SourceKey,
    "destination": layout.DestinationValue,
    "verdict_key": layout.VerdictKey,
    "verdict": layout.VerdictValue,
    "service": layout.ServiceValue,
    "backend_key": layout.BackendKey,
    "flow_key": layout.FlowKey,
    "flow_end": layout.FlowEnd,
    "kernel_flow": layout.KernelFlow,
    "delivery": layout.DeliveryValue,
    "closed_flow": layout.ClosedFlow,
    "closed_flows": layout.ClosedFlows,
    "flow_total_key": layout.FlowTotalKey,
    "flow_total": layout.FlowTotal,
}
HTTP_STRUCTS: dict[str, type[ctypes.Structure]] = {
    "http_key": http_layout.HttpKey,
    "http_cell": http_layout.HttpCellValue,
    "http_request": http_layout.HttpRequest,
    "http_stream": http_layout.HttpStream,
    "http_flow": http_layout.HttpFlow,
    "http_end": http_layout.HttpEnd,
    "http_tables": http_layout.HttpTables,
}
BYPASS_STRUCTS: dict[str, type[ctypes.Structure]] = {
    "bypass_side": bypass_layout.BypassSide,
    "bypass_stream": bypass_layout.BypassStream,
}
HEADERS = {"nodeagent.h": {**STRUCTS, "address": None}, "http.h": HTTP_STRUCTS, "bypass.h": BYPASS_STRUCTS}


def test_python_and_c_agree(tmp_path: Path) -> None:
    wanted, prints = [], []
    for name, mirror in {**STRUCTS, **HTTP_STRUCTS, **BYPASS_STRUCTS}.items():
        wanted.append(f"{name} {ctypes.sizeof(mirror)}")
        prints.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in mirror._fields_:
            member = getattr(mirror, field)
            wanted.append(f"{name}.{field} {member.offset} {member.size}")
            prints.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}), sizeof(((struct {name} '
                f"*)0)->{field}));"
            )
    for index, counter in enumerate(layout.COUNTERS):
        wanted.append(f"{counter} {index}")
        prints.append(f'printf("{counter} %d\\n", {counter.upper()});')
    for names in (http_layout.NAMED_STATES, http_layout.OUTCOMES):
        for index, name in enumerate(names):
            wanted.append(f"http {name} {index}")
            prints.append(f'printf("http {name} %d\\n", HTTP_{name.upper()});')
    wanted.append(
        f"constants {layout.OUTBOUND} {layout.INBOUND} {len(layout.COUNTERS)} {layout.ADDRESS_BYTES} "
        f"{layout.EARLIER_CGROUPS}"
    )
    wanted.append(f"kernel {layout.ANY_SOURCE} {layout.BY_SOURCE} {layout.FLOW_HTTP} {layout.FLOW_BYPASS}")
    prints.append(
        'printf("constants %d %d %d %zu %d\\n", OUTBOUND, INBOUND, COUNTERS, sizeof(struct address), EARLIER_CGROUPS);'
    )
    wanted.append(f"protection {layout.REFUSE_DEAD} {layout.REFUSE_UNREDIRECTED} {layout.PROBED}")
    prints.append('printf("kernel %d %d %d %d\\n", ANY_SOURCE, BY_SOURCE, FLOW_HTTP, FLOW_BYPASS);')
    prints.append('printf("protection %d %d %d\\n", REFUSE_DEAD, REFUSE_UNREDIRECTED, PROBED);')
    source = tmp_path / "layout.c"
    includes = "\n".join(
        f"#include {header}" for header in ("<stddef.h>", "<stdio.h>", *(f'"{name}"' for name in HEADERS))
    )
    source.write_text(f"{includes}\nint main(void) {{\n{chr(10).join(prints)}\nreturn 0;\n}}\n")
    subprocess.run(["cc", f"-I{loader.source_directory()}", str(source), "-o", str(tmp_path / "layout")], check=True)
    said = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == wanted


@pytest.mark.parametrize("header", HEADERS)
def test_every_struct_of_a_header_is_mirrored(header: str) -> None:
    text = (loader.source_directory() / header).read_text()
    declared = {line.split()[1] for line in text.splitlines() if line.startswith("struct ") and line.endswith("{")}
    assert declared == set(HEADERS[header])


def test_addresses_are_canonical() -> None:
    for text in ("10.0.0.1", "fd00::1", "::", "2001:db8::a:0:0:1"):
        assert layout.unpack_address(layout.pack_address(text)) == text
    assert layout.unpack_address(layout.pack_address("::ffff:10.0.0.1")) == "10.0.0.1"
