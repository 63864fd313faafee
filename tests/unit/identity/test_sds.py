"""Envoy's secret discovery, message by message: who asks is answered once, and hears of the next
change; what does not exist is said where it can be.
"""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from grpclib.client import StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nodeagent.identity.certificate import Certificate
from nodeagent.identity.sds import MAX_NAME, MAX_NAMES, SERVICE, TYPE_URL, _Delta
from nodeagent.identity.subject import Subject
from nodeagent.protocols.envoy_discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from nodeagent.protocols.envoy_tls_pb2 import Secret
from tests.unit.identity.sockets import WEB, World, refusal, run, silent, talking


def whole(world: World) -> Any:
    return talking(
        StreamStreamMethod(world.channel, f"/{SERVICE}/StreamSecrets", DiscoveryRequest, DiscoveryResponse).open()
    )


def delta(world: World) -> Any:
    return talking(
        StreamStreamMethod(
            world.channel, f"/{SERVICE}/DeltaSecrets", DeltaDiscoveryRequest, DeltaDiscoveryResponse
        ).open()
    )


def ask(*names: str, **more: Any) -> DiscoveryRequest:
    return DiscoveryRequest(resource_names=names, type_url=TYPE_URL, **more)


def subscribe(*names: str, **more: Any) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(resource_names_subscribe=names, type_url=TYPE_URL, **more)


def accept(response: DiscoveryResponse, *names: str) -> DiscoveryRequest:
    return ask(*names, version_info=response.version_info, response_nonce=response.nonce)


def refuse(response: DiscoveryResponse, *names: str) -> DiscoveryRequest:
    request = ask(*names, response_nonce=response.nonce)
    request.error_detail.message = "cannot be used"
    return request


def secrets(response: DiscoveryResponse) -> dict[str, Secret]:
    found = [Secret.FromString(resource.value) for resource in response.resources]
    assert {resource.type_url for resource in response.resources} <= {TYPE_URL}
    return {secret.name: secret for secret in found}


def is_pair(secret: Secret, certificate: Certificate) -> bool:
    pair = secret.tls_certificate
    return (pair.certificate_chain.inline_bytes, pair.private_key.inline_bytes) == (
        certificate.chain_pem,
        certificate.key_pem,
    )


async def sent(stream: Any, message: Message) -> Any:
    await stream.send_message(message)
    return await stream.recv_message()


def test_the_secrets_are_the_pods_certificate_and_the_roots() -> None:
    async def scenario(world: World) -> None:
        certificate = world.renew()
        async with whole(world) as stream:
            first = await sent(stream, ask("default", "ROOTCA"))
            assert first.type_url == TYPE_URL
            found = secrets(first)
            assert set(found) == {"default", "ROOTCA"}
            assert is_pair(found["default"], certificate)
            assert found["ROOTCA"].validation_context.trusted_ca.inline_bytes == certificate.roots_pem

    run(scenario)


def test_no_answer_before_there_is_a_certificate() -> None:
    async def scenario(world: World) -> None:
        async with whole(world) as stream:
            await stream.send_message(ask("default"))
            assert await silent(world.subject.certificate.other_than(None))
            certificate = world.renew()
            assert is_pair(secrets(await stream.recv_message())["default"], certificate)

    run(scenario)


@pytest.mark.parametrize("answer", [accept, refuse])
def test_who_accepts_or_refuses_hears_of_the_next_change_only(answer: Any) -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with whole(world) as stream:
            first = await sent(stream, ask("default"))
            await stream.send_message(answer(first, "default"))
            # The answer to a further name shows that the acknowledgement itself had none.
            second = await sent(stream, ask("default", "ROOTCA", response_nonce=first.nonce))
            assert set(secrets(second)) == {"default", "ROOTCA"}
            assert second.nonce != first.nonce
            await stream.send_message(answer(second, "default", "ROOTCA"))
            certificate = world.renew()
            third = await stream.recv_message()
            assert is_pair(secrets(third)["default"], certificate)
            assert third.version_info != second.version_info

    run(scenario)


def test_an_answer_to_an_older_response_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with whole(world) as stream:
            first = await sent(stream, ask("default"))
            world.renew()
            second = await stream.recv_message()
            await stream.send_message(ask("ROOTCA", response_nonce=first.nonce))
            await stream.send_message(accept(second, "default"))
            certificate = world.renew()
            third = await stream.recv_message()
            assert set(secrets(third)) == {"default"}
            assert is_pair(secrets(third)["default"], certificate)

    run(scenario)


def test_the_roots_are_not_told_again_when_only_the_certificate_changed() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with whole(world) as roots, whole(world) as pair:
            await sent(roots, ask("ROOTCA"))
            await sent(pair, ask("default"))
            world.renew()
            await pair.recv_message()
            other = world.subject.certificate.value
            assert other is not None
            again = await sent(roots, ask("ROOTCA"))
            assert again.nonce == "2", "nothing was told in between"
            assert secrets(again)["ROOTCA"].validation_context.trusted_ca.inline_bytes == other.roots_pem

    run(scenario)


def test_of_whole_state_an_unknown_name_is_left_out() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with whole(world) as stream:
            await stream.send_message(ask("nothing"))
            answer = await sent(stream, ask("default", "nothing"))
            assert set(secrets(answer)) == {"default"}
            assert answer.nonce == "1"

    run(scenario)


def test_no_names_at_first_mean_all() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with whole(world) as stream:
            assert set(secrets(await sent(stream, ask()))) == {"default", "ROOTCA"}
        fetch: Any = UnaryUnaryMethod(world.channel, f"/{SERVICE}/FetchSecrets", DiscoveryRequest, DiscoveryResponse)
        assert set(secrets(await fetch(ask()))) == {"default", "ROOTCA"}
        assert set(secrets(await fetch(ask("ROOTCA", "nothing")))) == {"ROOTCA"}

    run(scenario)


@pytest.mark.parametrize(
    "request_",
    [
        ask("default", *map(str, range(MAX_NAMES))),
        ask("x" * (MAX_NAME + 1)),
        DiscoveryRequest(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"),
    ],
)
def test_what_is_not_served_here_is_refused(request_: DiscoveryRequest) -> None:
    async def scenario(world: World) -> None:
        world.renew()

        async def asked() -> None:
            async with whole(world) as stream:
                await sent(stream, request_)

        assert (await refusal(asked()))[0] is Status.INVALID_ARGUMENT

    run(scenario)


def test_a_delta_stream_keeps_few_and_short_names() -> None:
    """Input: names that are long, each in a request that is not; and versions so long. Verdict: the first are
    refused, the others not kept.
    """
    subject = Subject(WEB, None)
    state = _Delta()
    state.take(subscribe("default", initial_resource_versions={"default": "x" * (MAX_NAME + 1)}), subject)
    assert state.told == {}
    with pytest.raises(GRPCError, match="names of 256 characters"):
        state.take(subscribe("x" * (MAX_NAME + 1)), subject)
    for number in range(1, MAX_NAMES):
        state.take(subscribe(str(number)), subject)
    with pytest.raises(GRPCError, match="at most 16 names"):
        state.take(subscribe("one more"), subject)


def test_delta_tells_what_is_new_and_what_does_not_exist_once() -> None:
    async def scenario(world: World) -> None:
        certificate = world.renew()
        async with delta(world) as stream:
            first = await sent(stream, subscribe("default", "nothing"))
            (resource,) = first.resources
            assert (resource.name, list(first.removed_resources)) == ("default", ["nothing"])
            assert is_pair(Secret.FromString(resource.resource.value), certificate)
            await stream.send_message(DeltaDiscoveryRequest(response_nonce=first.nonce))
            second = await sent(stream, subscribe("ROOTCA"))
            assert [each.name for each in second.resources] == ["ROOTCA"]
            assert not second.removed_resources
            world.renew()
            third = await stream.recv_message()
            assert [each.name for each in third.resources] == ["default"], "the roots are the same"

    run(scenario)


def test_delta_unsubscribed_is_told_no_more_and_subscribed_again_at_once() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with delta(world) as stream:
            await sent(stream, subscribe("default", "ROOTCA"))
            await stream.send_message(DeltaDiscoveryRequest(resource_names_unsubscribe=["default"]))
            again = await sent(stream, subscribe("ROOTCA"))
            assert [each.name for each in again.resources] == ["ROOTCA"]
            world.renew()
            back = await sent(stream, subscribe("default"))
            assert [each.name for each in back.resources] == ["default"]
            assert back.nonce == "3", "the change of what is not subscribed was not told"

    run(scenario)


def test_delta_after_a_reconnect_tells_what_the_client_does_not_have() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with delta(world) as stream:
            first = await sent(stream, subscribe("default", "ROOTCA"))
        versions = {each.name: each.version for each in first.resources}
        world.renew()
        async with delta(world) as stream:
            again = await sent(stream, subscribe("default", "ROOTCA", initial_resource_versions=versions))
            assert [each.name for each in again.resources] == ["default"]

    run(scenario)


def test_delta_without_names_at_first_means_all() -> None:
    async def scenario(world: World) -> None:
        world.renew()
        async with delta(world) as stream:
            assert {each.name for each in (await sent(stream, subscribe())).resources} == {"default", "ROOTCA"}

    run(scenario)
