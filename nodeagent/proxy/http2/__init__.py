"""HTTP/2 towards both sides (RFC 9113): one session that knows frames, streams and windows, and a
codec on top of it for each side.

``frames.py`` is the wire; ``session.py`` the connection as both roles have it, without I/O, on top
of ``control.py`` (what peers say of the connection) and ``sender.py`` (what is sent); ``user.py``
whom it tells; ``stream.py`` what it knows of one stream; ``heads.py`` what of a header block may pass (pure);
``downstream.py`` and ``upstream.py`` are the two halves of an exchange (``proxy/http/``), and
``streams.py`` the connections of one pool, whose streams are what is free or not. Nothing here
knows policies, routes or telemetry. It must never hold more of a peer's bytes than the windows and
bounds of ``session.py`` let it send, and never pass a head on that a reader of HTTP/1 could take
for something else.
"""
