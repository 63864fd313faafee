"""HTTP/2 towards both sides (RFC 9113)."""
