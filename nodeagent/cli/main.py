"""The ``nodeagent`` command. Its sub-commands are imported when they run, so that help and completion are quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

import click

from nodeagent import __version__
from nodeagent.errors import NodeagentError

COMMANDS: Final = {
    "compare": (
        "nodeagent.cli.compare",
        "No mesh, the node agent, per-pod sidecars: the same workload, one run, one report.",
    ),
    "check": (
        "nodeagent.cli.check",
        "Preflight of this machine, or of a cluster: what is missing, and what is lost without it.",
    ),
    "run": ("nodeagent.cli.run", "The daemon, in the foreground."),
    "lab": ("nodeagent.cli.lab", "A cluster on this machine: nodes, pods, services; no Kubernetes needed."),
    "get": ("nodeagent.cli.get", "What running agents believe: pods, certs, policies, routes, endpoints, logs."),
    "explain": ("nodeagent.cli.explain", "Which policy and rule would decide about a request, and why."),
    "flows": ("nodeagent.cli.flows", "Who talks to whom, over which path, and why not."),
    "logs": (
        "nodeagent.cli.logs",
        "What pods write, as their nodes' files have it; and what a Fluentd configuration becomes.",
    ),
    "inject": ("nodeagent.cli.inject", "Classic sidecars, given to pods and workloads in YAML files."),
    "ca": ("nodeagent.cli.ca", "The certificate authority as a service, and the exchange of its root."),
    "sidecar": ("nodeagent.cli.sidecar", "The proxy as a classic sidecar: one process in a pod."),
    "sidecar-init": ("nodeagent.cli.sidecar_init", "The iptables rules of a pod with a classic sidecar."),
    "webhook": (
        "nodeagent.cli.webhook",
        "Classic sidecars, given to a cluster's pods as they are made: the admission webhook.",
    ),
    "install": ("nodeagent.cli.install", "The agent on every node of a cluster."),
    "uninstall": ("nodeagent.cli.uninstall", "What agents left is removed: from this node, or from a cluster."),
    "ready": ("nodeagent.cli.ready", "Whether an agent is ready, and what is missing: a kubelet's probe."),
    "reload": ("nodeagent.cli.reload", "New workers for the proxy, without a lost request."),
}
"""Name -> (module that holds a click command of that name, with ``_`` for ``-``; one line of help)."""


class LazyGroup(click.Group):
    """A group whose commands are imported only when one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="nodeagent")
@click.pass_context
def cli(context: click.Context) -> None:
    """A service mesh's sidecars, once per node instead of once per pod."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 when something failed, 2 when the command line is wrong,
    or the command's own status.
    """
    try:
        status = cli.main(arguments, prog_name="nodeagent", standalone_mode=False)
    except NodeagentError as error:
        _fail(str(error), 1)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "nodeagent"
        _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has had enough; the interpreter must not complain about it at its
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (OSError, UnicodeError, RecursionError) as error:  # of a file or terminal, where nobody said it better
        _fail(f"{error}", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    # One line, and nothing in it that a terminal would act on: a message may quote a file or a
    # peer.
    printable = "".join(
        [letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(message.split())]
    )
    print(f"nodeagent: {printable}", file=sys.stderr)
    sys.exit(status)
