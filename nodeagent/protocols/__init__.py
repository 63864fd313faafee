"""Messages that the agent exchanges over gRPC: subsets of public protocols, equal to them on the
wire, and the code generated from them.

Unknown fields of a peer are skipped, so a subset is enough. ``python -m
nodeagent.protocols.generate`` renews the generated modules. They bring the protobuf library (some
MB), so the daemon imports them only where such a protocol is configured.
"""
