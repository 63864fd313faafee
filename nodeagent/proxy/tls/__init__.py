"""TLS on a worker's connections, without a socket of its own: what a ClientHello says
(``client_hello.py``), how many records a turn of the loop may cost (``records.py``), and a session
over a transport (``stream.py``).
"""
