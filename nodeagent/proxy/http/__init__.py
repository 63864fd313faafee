"""HTTP as the proxy speaks it inside, whatever version a client or an endpoint speaks.

An exchange (``exchange.py``) is one request and its answer between two halves: the codec towards
the client and the codec towards the endpoint. A codec parses and frames for its own wire; what
stands between the two (guard, external authorizers, pool, routes, telemetry) sees a method, a
target, an authority, fields as pairs (``fields.py``) and bodies without framing. A client's own
X-Forwarded-Client-Cert never reaches a delivered request.
"""
