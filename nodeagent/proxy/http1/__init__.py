"""HTTP/1.1 towards both sides: the wire form of requests and answers (RFC 9112), strict in what it
takes and plain in what it sends.

A request's head is parsed and written anew; ambiguous length is refused (``framing.py``), so that
no two readers of one connection can disagree about where a message ends. A client's own
X-Forwarded-Client-Cert never reaches a delivered request.
"""
