"""``nodeagent sidecar-init``: the iptables rules of a pod with a classic sidecar, in the network
namespace where it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nodeagent import istio
from nodeagent.sidecar.rules import MAX_ITEMS

if TYPE_CHECKING:
    from nodeagent.sidecar.rules import Network

_T = TypeVar("_T")

_EVERYTHING = "*"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise click.BadParameter(f"{text!r:.80}: ports from 1 to 65535, separated by commas, are allowed")
    return int(text)


def _range(text: str) -> Network:
    try:
        return ip_network(text, strict=False)  # Istio takes 10.0.0.1/8 for 10.0.0.0/8, too
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r:.80}: networks such as 10.0.0.0/8 or fd00::/8, separated by commas, are allowed ({error})"
        ) from None


def _list(
    read: Callable[[str], _T], wildcard: bool, context: click.Context, parameter: click.Parameter, text: str
) -> tuple[_T, ...] | None:
    """Return the parts of *text*, each once; None for everything. Raises click.BadParameter."""
    parts = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    if _EVERYTHING in parts:
        if wildcard and len(parts) == 1:
            return None
        raise click.BadParameter(f"{text!r:.80}: '*' " + ("stands alone" if wildcard else "is not allowed here"))
    if len(parts) > MAX_ITEMS:
        raise click.BadParameter(f"{len(parts)} entries: at most {MAX_ITEMS} are allowed")
    return tuple(read(part) for part in parts)


_some_ports = partial(_list, _port, False)
_all_ports = partial(_list, _port, True)
_some_ranges = partial(_list, _range, False)
_all_ranges = partial(_list, _range, True)
_port_number = click.IntRange(1, 65535)
_owner = click.IntRange(1, 2**32 - 2)


@click.command("sidecar-init")
@click.option(
    "--inbound-ports",
    "inbound",
    default="*",
    show_default=True,
    callback=_all_ports,
    help="Captured inbound ports: '*', a list, or '' for none.",
)
@click.option(
    "--exclude-inbound-ports", "exclude_inbound", default="", callback=_some_ports,
    help=f"Inbound ports that are left alone; {', '.join(map(str, istio.UNCAPTURED_PORTS))} always are.",
)  # fmt: skip
@click.option(
    "--include-outbound-ports",
    "include_outbound",
    default="",
    callback=_some_ports,
    help="Outbound ports that are captured wherever they lead.",
)
@click.option(
    "--exclude-outbound-ports",
    "exclude_outbound",
    default="",
    callback=_some_ports,
    help="Outbound ports that are left alone.",
)
@click.option(
    "--outbound-ranges",
    "ranges",
    default="*",
    show_default=True,
    callback=_all_ranges,
    help="Captured destinations: '*', or CIDRs.",
)
@click.option(
    "--exclude-outbound-ranges",
    "exclude_ranges",
    default="",
    callback=_some_ranges,
    help="Destinations that are left alone: CIDRs.",
)
@click.option(
    "--uid", default=istio.USER, show_default=True, type=_owner, help="The sidecar's user, whose traffic is left alone."
)
@click.option("--gid", default=istio.USER, show_default=True, type=_owner, help="The sidecar's group, as --uid.")
@click.option(
    "--proxy-port",
    default=istio.OUTBOUND_PORT,
    show_default=True,
    type=_port_number,
    help="Where outbound connections are led to.",
)
@click.option(
    "--inbound-capture-port",
    "inbound_port",
    default=istio.INBOUND_PORT,
    show_default=True,
    type=_port_number,
    help="Where inbound connections are led to.",
)
@click.option("--clean", is_flag=True, help="Remove the rules instead.")
@click.option("--dry-run", is_flag=True, help="Print the rules and change nothing.")
def sidecar_init(*, clean: bool, dry_run: bool, **settings: Any) -> None:
    """Lead a pod's traffic to its sidecar by Istio's iptables rules, IPv4 and IPv6; running it
    again changes nothing.

    Run it in the pod's network namespace before the application starts; it needs CAP_NET_ADMIN and
    CAP_NET_RAW.
    """
    from nodeagent.sidecar import iptables
    from nodeagent.sidecar.rules import PodCapture

    if settings["proxy_port"] == settings["inbound_port"]:
        raise click.UsageError("--proxy-port and --inbound-capture-port must differ")
    if dry_run and clean:
        raise click.UsageError("--dry-run and --clean exclude each other")
    if dry_run:
        click.echo(iptables.preview(PodCapture(**settings)), nl=False)
    elif clean:
        iptables.clean()
    else:
        iptables.install(PodCapture(**settings))
