"""HTTP/1.1 towards both sides: the wire form of requests and answers (RFC 9112), strict in what it
takes and plain in what it sends. Lines, chunks, persistence, pipelining and Upgrade are known here
only: towards the rest of the proxy both codecs speak in exchanges (``proxy/http/exchange.py``).

A request's head is parsed and written anew; ambiguous length is refused (``framing.py``), so that
no two readers of one connection can disagree about where a message ends.
"""
