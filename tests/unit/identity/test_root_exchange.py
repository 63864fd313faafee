"""The exchange of the root: at no step does anybody refuse anybody who has caught up with the step before."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.errors import IdentityError
from nodeagent.identity.authority_directory import (
    NEXT,
    OLD_KEY,
    ROOT_KEY,
    ROOTS,
    SIGNING,
    certificates,
    finish,
    last_step,
    prepare,
    switch,
)
from nodeagent.identity.ca import CertificateAuthority
from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sources import BuiltIn
from nodeagent.identity.spiffe import spiffe_id
from nodeagent.identity.tls import TCP_ALPN, client_context, server_context
from tests.unit.identity.test_ca import old_layout
from tests.unit.identity.test_tls import Pair

DOMAIN = "cluster.local"
WEB = spiffe_id(DOMAIN, "default", "web")


class Agent:
    """A running agent: a certificate, and what is trusted, as of the last look at the source."""

    def __init__(self, directory: Path) -> None:
        self.authority = CertificateAuthority.open_or_create(directory, DOMAIN)
        self.source = BuiltIn(self.authority)
        self.trust = self.source.trust()
        self.certificate = self.authority.issue(WEB, 3600)

    def look(self) -> None:
        """Do what the store does at its interval."""
        trust = self.source.trust()
        if trust.signer != self.trust.signer:
            self.certificate = self.authority.issue(WEB, 3600)
        self.trust, self.certificate = trust, replace(self.certificate, roots_pem=trust.roots_pem)


def meet(agents: list[Agent]) -> None:
    """Let everybody speak with everybody, both ways."""
    for client, server in itertools.product(agents, repeat=2):
        Pair(client_context(client.certificate, TCP_ALPN), server_context(server.certificate)).handshake()


def root_of(certificate: Certificate) -> bytes:
    return certificates(certificate.chain_pem)[-1].issuer.public_bytes()


@pytest.mark.parametrize("old", [False, True], ids=["new layout", "older layout"])
def test_no_handshake_fails_at_any_step(tmp_path: Path, *, old: bool) -> None:
    if old:
        old_layout(tmp_path)
    prompt, slow = Agent(tmp_path), Agent(tmp_path)
    first = root_of(prompt.certificate)
    for step in (prepare, switch, finish):
        step(tmp_path, time.time())
        meet([prompt, slow])
        prompt.look()
        # Between what took up the step, what has not yet, and what starts now.
        meet([prompt, slow, Agent(tmp_path)])
        slow.look()
        meet([prompt, slow, Agent(tmp_path)])
    assert root_of(prompt.certificate) != first
    assert len(certificates(prompt.certificate.roots_pem)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ROOTS, ROOT_KEY, SIGNING]


def test_afterwards_the_old_root_proves_nothing(tmp_path: Path) -> None:
    stolen = CertificateAuthority.open_or_create(tmp_path, DOMAIN).issue(WEB, 3600)
    for step in (prepare, switch, finish):
        step(tmp_path, time.time())
    agent = Agent(tmp_path)
    stolen = replace(stolen, roots_pem=agent.certificate.roots_pem)
    with pytest.raises(OSError, match="certificate verify failed"):
        Pair(client_context(stolen, TCP_ALPN), server_context(agent.certificate)).handshake()


def test_both_roots_are_trusted_in_between_and_the_new_one_signs_only_after_the_switch(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    before = agent.trust
    prepare(tmp_path, time.time())
    agent.look()
    assert len(certificates(agent.trust.roots_pem)) == 2
    assert agent.trust.signer == before.signer
    assert (tmp_path / NEXT).stat().st_mode & 0o777 == 0o600
    switch(tmp_path, time.time())
    agent.look()
    assert len(certificates(agent.trust.roots_pem)) == 2
    assert agent.trust.signer != before.signer


def test_steps_are_taken_in_their_order(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    with pytest.raises(IdentityError, match="prepare comes first"):
        switch(tmp_path, time.time())
    finish(tmp_path, time.time())  # nothing to do
    prepare(tmp_path, time.time())
    with pytest.raises(IdentityError, match="switch comes first"):
        finish(tmp_path, time.time())
    with pytest.raises(IdentityError, match="caDirectory"):
        prepare(tmp_path / "nowhere", time.time())


def test_a_step_that_was_interrupted_is_taken_again(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    roots = (tmp_path / ROOTS).read_bytes()
    prepare(tmp_path, time.time())
    coming = (tmp_path / NEXT).read_bytes()
    (tmp_path / ROOTS).write_bytes(roots)  # died before the new root was trusted
    with pytest.raises(IdentityError, match="not trusted yet"):
        switch(tmp_path, time.time())
    prepare(tmp_path, time.time())
    prepare(tmp_path, time.time())
    assert len(certificates((tmp_path / ROOTS).read_bytes())) == 2
    root_key = (tmp_path / ROOT_KEY).read_bytes()
    switch(tmp_path, time.time())
    (tmp_path / NEXT).write_bytes(coming)  # died before the new root's key was in its place
    (tmp_path / NEXT).chmod(0o600)
    (tmp_path / ROOT_KEY).write_bytes(root_key)
    meet([Agent(tmp_path)])
    switch(tmp_path, time.time())
    finish(tmp_path, time.time())
    meet([Agent(tmp_path)])
    assert (tmp_path / ROOT_KEY).read_bytes() == coming


def test_the_last_step_is_dated(tmp_path: Path) -> None:
    CertificateAuthority.open_or_create(tmp_path, DOMAIN)
    before = time.time() - 1
    prepare(tmp_path, time.time())
    assert before < last_step(tmp_path) <= time.time() + 1
    assert not (tmp_path / OLD_KEY).exists()
