"""A worker: one event loop that carries pods' connections through the stages accept, identify,
authorize, route, forward, observe.

``pipeline.py`` is that line; every other module is one stage's means. What all of them share is
plain data (``context.py``), and ``proxy.py`` composes a whole proxy, for a worker, a classic
sidecar and the unit tests alike: no part knows the pipeline. Nothing here enters a namespace, reads
a policy document or knows the authority's key: sockets inside pods, certificates and the snapshot's
entries come from control over a channel, and a worker (``worker.py``, which keeps their order, and
``serving.py``, what it serves) is a user of its own without a capability (``privilege.py``).

**HTTP or not.** A port declared http or tcp is what it is declared to be; to one declared http2 or
grpc a client may come with TLS of the application's own. On these and on any other nothing is
decided by time: a client whose first line is a request line for any server (``sniff.py``) speaks
HTTP, a server that speaks first does not; while both are silent the endpoint is dialled already
(``first_words.py``), and what goes on of half a line is looked at until it is certain. HTTP/2 is
told by its preface, of its client: a server's SETTINGS say nothing. What is not parsed as HTTP
never reaches a workload whose policies decide by requests (JWT, rate limits, rules with HTTP
fields), unless the port is declared to be no HTTP: the refusal ``unparsed_http``. On ports declared
tcp X-Forwarded-Client-Cert is neither made nor removed.

**Patience.** The proxy took the client's connection, so it does for it what the client could do
itself: where nothing listens at an endpoint's address, its other family's is tried. No time that an
application takes ends anything unless it is configured (``proxy.timeouts.request``,
``streamIdle``); a client's request head must be whole within ``head`` (300 s); ends that vanished
are found by TCP's keep-alive.

**Policy in force.** A guard (``guard.py``, made by ``guards.py``) puts together what applies to a
workload; what it means for one client (``client_guard.py``) belongs to a route. Policies are
compiled when they come to the worker, in slices (``pace.py``), and a change comes into force at
once: every open connection is looked at again, in slices (``revocation.py``). Where method, target
and host alone decide, the guard remembers decisions within a bound; they end with it, and it ends
with its policies.

**Probes.** Of the node a STRICT pod takes only declared probes: HTTP ones by path; gRPC ones are
asked in the node's stead (``grpc_probe.py``); a TCP probe's connection is never relayed, and opens
only while something in the pod listens there (``redirect/probed.py``). The kubelet's lifecycle
hooks over HTTP are declared probes too. Of anybody it takes GET of the metrics that it declares.

**One pod cannot hurt another.** What one connection may cost a turn of the loop is bounded: TLS
records (``tls/records.py``; those without data end it after a few), pipelined requests
(``http1/turns.py``); a sweep over very many connections takes several turns.
"""
