"""The SPIFFE Workload API, call by call; with the real package, in a pod, in tests/netns/test_workload_api.py."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status

from nodeagent.identity.subject import der
from nodeagent.identity.workload_api import MAX_AUDIENCE, MAX_AUDIENCES
from nodeagent.protocols import spiffe_workload_pb2 as messages
from tests.unit.identity.sockets import WEB, World, refusal, run, silent, talking

METADATA = {"workload.spiffe.io": "true"}


def stream(world: World, name: str, request: Any, reply: Any) -> Any:
    return talking(
        UnaryStreamMethod(world.channel, f"/SpiffeWorkloadAPI/{name}", request, reply).open(metadata=METADATA)
    )


def svids(world: World) -> Any:
    return stream(world, "FetchX509SVID", messages.X509SVIDRequest, messages.X509SVIDResponse)


async def token(world: World, *audience: str, spiffe_id: str = "") -> Any:
    method: Any = UnaryUnaryMethod(
        world.channel, "/SpiffeWorkloadAPI/FetchJWTSVID", messages.JWTSVIDRequest, messages.JWTSVIDResponse
    )
    return await method(messages.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id), metadata=METADATA)


async def validate(world: World, audience: str, svid: str) -> Any:
    method: Any = UnaryUnaryMethod(
        world.channel,
        "/SpiffeWorkloadAPI/ValidateJWTSVID",
        messages.ValidateJWTSVIDRequest,
        messages.ValidateJWTSVIDResponse,
    )
    return await method(messages.ValidateJWTSVIDRequest(audience=audience, svid=svid), metadata=METADATA)


def test_a_caller_waits_for_the_first_certificate_and_hears_of_each_one() -> None:
    async def scenario(world: World) -> None:
        async with svids(world) as call:
            await call.send_message(messages.X509SVIDRequest(), end=True)
            for _ in range(3):
                certificate = world.renew()
                (svid,) = (await call.recv_message()).svids
                assert svid.spiffe_id == WEB
                assert (svid.x509_svid, svid.x509_svid_key, svid.bundle) == tuple(
                    map(der, (certificate.chain_pem, certificate.key_pem, certificate.roots_pem))
                )

    run(scenario)


def test_a_certificate_that_has_ended_is_given_to_nobody() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        world.subject.certificate.set(None)
        async with svids(world) as call:
            await call.send_message(messages.X509SVIDRequest(), end=True)
            receiving = asyncio.ensure_future(call.recv_message())
            assert await silent(asyncio.shield(receiving))
            world.renew()
            assert (await receiving).svids[0].spiffe_id == WEB

    run(scenario)


def test_bundles_are_told_when_the_roots_change_and_only_then() -> None:
    async def scenario(world: World) -> None:
        certificate = world.renew()
        async with stream(world, "FetchX509Bundles", messages.X509BundlesRequest, messages.X509BundlesResponse) as call:
            await call.send_message(messages.X509BundlesRequest(), end=True)
            assert dict((await call.recv_message()).bundles) == {"spiffe://cluster.local": der(certificate.roots_pem)}
            world.renew()
            two = dataclasses.replace(certificate, roots_pem=certificate.roots_pem * 2)
            world.subject.certificate.set(two)
            assert dict((await call.recv_message()).bundles) == {"spiffe://cluster.local": der(two.roots_pem)}

    run(scenario)


def test_tokens_of_another_are_refused_and_ones_own_is_given() -> None:
    async def scenario(world: World) -> None:
        for name in ("spiffe://cluster.local/ns/default/sa/shop", "web", f"{WEB}/"):
            status, _ = await refusal(token(world, "shop", spiffe_id=name))
            assert status is Status.PERMISSION_DENIED
        (svid,) = (await token(world, "shop", spiffe_id=WEB)).svids
        answer = await validate(world, "shop", svid.svid)
        assert answer.spiffe_id == WEB
        assert answer.claims["sub"] == WEB
        for audience, text in (("", svid.svid), ("shop", ""), ("bank", svid.svid), ("shop", svid.svid[:-1])):
            status, _ = await refusal(validate(world, audience, text))
            assert status is Status.INVALID_ARGUMENT

    run(scenario)


@pytest.mark.parametrize(
    "audience", [(), ("",), ("shop", ""), ("x" * (MAX_AUDIENCE + 1),), ("x",) * (MAX_AUDIENCES + 1)]
)
def test_an_audience_that_makes_no_sense_is_refused(audience: tuple[str, ...]) -> None:
    async def scenario(world: World) -> None:
        status, words = await refusal(token(world, *audience))
        assert status is Status.INVALID_ARGUMENT
        assert words.startswith("audience: ")

    run(scenario)


def test_the_bundle_of_tokens_is_told_when_its_keys_change() -> None:
    async def scenario(world: World) -> None:
        assert world.jwt is not None
        async with stream(world, "FetchJWTBundles", messages.JWTBundlesRequest, messages.JWTBundlesResponse) as call:
            await call.send_message(messages.JWTBundlesRequest(), end=True)
            first = (await call.recv_message()).bundles["spiffe://cluster.local"]
            assert json.loads(first)["keys"][0]["use"] == "jwt-svid"
            world.jwt.bundle.set(b'{"keys":[]}')
            assert (await call.recv_message()).bundles["spiffe://cluster.local"] == b'{"keys":[]}'

    run(scenario)


def test_without_the_built_in_authority_there_are_no_tokens_and_the_caller_is_told() -> None:
    async def scenario(world: World) -> None:
        for call in (token(world, "shop"), validate(world, "shop", "a.b.c")):
            status, words = await refusal(call)
            assert status is Status.UNIMPLEMENTED
            assert "identity.caDirectory" in words

    run(scenario, tokens=False)
