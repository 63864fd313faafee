/* What the kernel programs and the daemon share: every struct once, mirrored by nodeagent/redirect/layout.py
 * (tests/bpf/test_layout.py compares the two). Plain C and UAPI types only, so that any C compiler can read it.
 *
 * Addresses are always 16 bytes in network order; IPv4 is v4-mapped (::ffff:a.b.c.d), so there is one path for both.
 * Ports are in host order. What is kept in maps outlives the daemon, and its successor may be of another version: such a
 * struct grows only at its end, where zero means what it was before (nodeagent/redirect/maps.py: Succession).
 * Padding is named and zero, because these structs are hashed byte for byte.
 */
#ifndef NODEAGENT_H
#define NODEAGENT_H

#include <linux/types.h>

struct address {
  __u32 words[4];
};

enum { EARLIER_CGROUPS = 3 };

/* One for the node, written by the loader. */
struct settings {
  __u64 heartbeat_timeout_ns;
  __u64 agent_cgroup; /* id of the daemon's own cgroup, 0: it has none below the captured one */
  __u64 host_netns;   /* cookie of the node's network namespace: hostNetwork pods are not captured */
  __u32 deny_unknown; /* 1: what lives below the captured cgroup and is not enrolled may not connect */
  __u16 outbound_port;
  __u16 inbound_port;
  __u64 kernel_path_timeout_ns;
  __u64 earlier_cgroups[EARLIER_CGROUPS]; /* of the daemons before this one, which may still end their connections; from the front */
  __u64 owner; /* grows with each run of the loader: whose number this is not any more has been succeeded */
};

/* heartbeat: enum pulse -> monotonic ns of the last beat. PULSE_DAEMON: connections are carried; 0: it stopped on purpose.
 * PULSE_KERNEL_PATH: the kernel path's maps are as the cluster is. */
enum pulse { PULSE_DAEMON, PULSE_KERNEL_PATH };

/* What is refused rather than let pass where no proxy looks at it. REFUSE_DEAD: while the daemon is dead or late.
 * REFUSE_UNREDIRECTED: what cannot be redirected though the daemon lives. PROBED: the node's own processes are let in all the same. */
enum protection { REFUSE_DEAD = 1, REFUSE_UNREDIRECTED = 2, PROBED = 4 };

/* pods: netns cookie -> struct pod */
struct pod {
  __u32 protection; /* enum protection */
  __u32 id;     /* the pod's number on this node, from 1 on, never used again */
  __u32 bypass; /* 1: it asks for the socket bypass */
  __u32 reserved;
  struct address ipv4; /* what getsockname answers on a captured connection; zero: none */
  struct address ipv6;
};

/* left_alone: netns cookie -> __u32 1: a pod of this node that is known and outside of the mesh.
 * denied: netns cookie -> struct denied: who was refused for being neither enrolled nor left alone. */
struct denied {
  __u64 cgroup; /* id of the process's cgroup, which names the pod */
  __u64 refused;
  __u64 refused_at; /* monotonic ns of the last time */
};

enum direction { OUTBOUND = 0, INBOUND = 1 };

/* exclusions: struct port_key -> __u32 1
 * probed: struct port_key, INBOUND -> __u32: does anything listen there? Of ports that TCP probes ask for.
 * port_modes: struct port_key, INBOUND -> __u32: enum protection in place of the pod's */
struct port_key {
  __u64 netns;
  __u32 direction;
  __u32 port;
};

/* listeners: struct listener_key -> listening socket (from user space: its cookie) */
struct listener_key {
  __u64 netns;
  __u32 direction;
  __u32 family; /* 4 or 6 */
};

struct endpoint {
  struct address address;
  __u32 port;
};

/* by_cookie: socket cookie -> struct original; by_source: struct source -> struct original */
struct original {
  struct endpoint asked;  /* what the app dialled */
  struct endpoint chosen; /* the endpoint picked for a ClusterIP; port 0: none was */
  __u32 service;          /* number of the Service it was picked from, 0: none */
  __u32 kernel;           /* 1: goes to the endpoint itself, not to the proxy */
};

/* How the daemon knows an accepted connection: netns cookie of the listener, peer address, peer port. */
struct source {
  __u64 netns;
  struct address address;
  __u32 port;
  __u32 reserved;
};

/* The kernel path. Pods and Services are numbers that control gives. */

enum verdict_of { ANY_SOURCE, BY_SOURCE };
enum flow_flag { FLOW_HTTP = 1, FLOW_BYPASS = 2 };

/* destinations: struct endpoint of a pod of this node -> how connections to it are decided. Absent: by the proxy. */
struct destination {
  __u32 pod;
  __u32 generation; /* of its verdicts: a new one makes all older ones unfindable */
  __u32 verdict;    /* enum verdict_of; ANY_SOURCE: every enrolled pod may */
  __u32 flags;      /* enum flow_flag */
};

/* verdicts: struct verdict_key -> struct verdict. Absent: the proxy decides. */
struct verdict_key {
  __u32 source;
  __u32 destination;
  __u32 port;
  __u32 generation;
};

struct verdict {
  __u32 allowed;
  __u32 reserved;
};

/* services: struct endpoint (a ClusterIP) -> struct service */
struct service {
  __u32 set;    /* its endpoints: backends [set, 0 … count) */
  __u32 count;
  __u32 number;
  __u32 reserved;
};

/* backends: struct backend_key -> struct endpoint */
struct backend_key {
  __u32 set;
  __u32 slot;
};

/* A connection as its client sees it. node_flows: struct flow_key -> __u64 monotonic ns when a process of the node opened it */
struct flow_key {
  struct address source;
  struct address destination;
  __u32 source_port;
  __u32 destination_port;
};

/* Bytes of data, known when the end is closed; at least as much was carried. */
struct flow_end {
  __u64 sent; /* and acknowledged */
  __u64 received;
};

/* kernel_flows: struct flow_key -> struct kernel_flow, from the SYN until both ends are closed */
struct kernel_flow {
  __u64 client; /* socket cookies; */
  __u64 server; /* 0: its end is not established yet */
  __u64 opened; /* monotonic ns, 0: the client's end is not established yet */
  struct flow_end ends[2]; /* client's, server's */
  __u32 source;
  __u32 destination;
  __u32 service; /* 0: the pod's own address was dialled */
  __u32 flags;   /* enum flow_flag */
  __u32 client_closed;
  __u32 server_closed;
};

/* A worker is about to deliver to a pod's application. It writes announced: its socket's cookie -> the struct address that the
 * application shall see; only workers can. deliveries: struct flow_key -> struct delivery, from the SYN until the server's end
 * is established. clients: the application's socket's cookie -> struct address, where that is not the connection's own. */
struct delivery {
  __u64 dialler; /* socket cookie */
  struct address client;
};

/* closed_flows: a client's number -> struct closed_flows: its connections that ended last, a ring */
struct closed_flow {
  struct flow_key ends;
  struct kernel_flow flow;
  __u64 closed; /* monotonic ns, 0: the place is free */
};

enum { CLOSED_FLOWS = 32 }; /* of a pod; a power of two */

struct closed_flows {
  __u64 next;
  struct closed_flow flows[CLOSED_FLOWS];
};

/* flow_totals: struct flow_total_key -> struct flow_total. Connections, and the bytes of those of which both ends are closed. */
struct flow_total_key {
  __u32 source;
  __u32 destination;
  __u32 port;
  __u32 service;
};

struct flow_total {
  __u64 opened;
  __u64 closed;
  __u64 failed;   /* never established */
  __u64 received; /* by the server */
  __u64 sent;
  __u64 refused;    /* by policy */
  __u64 refused_at; /* monotonic ns of the last time */
};

/* counters: per-CPU array of __u64, indexed by this. */
enum counter {
  OUTBOUND_CAPTURED,
  OUTBOUND_EXCLUDED,
  OUTBOUND_UNKNOWN_ALLOWED,
  OUTBOUND_UNKNOWN_DENIED,
  OUTBOUND_DEAD_PASSED,
  OUTBOUND_DEAD_REFUSED,
  OUTBOUND_FULL_PASSED,
  OUTBOUND_FULL_REFUSED,
  OUTBOUND_UNREDIRECTABLE_PASSED,
  OUTBOUND_UNREDIRECTABLE_REFUSED,
  INBOUND_CAPTURED,
  INBOUND_EXCLUDED,
  INBOUND_UNKNOWN_REFUSED,
  INBOUND_DEAD_PASSED,
  INBOUND_DEAD_REFUSED,
  INBOUND_DEAD_PROBED,
  INBOUND_ASSIGN_FAILED,
  OUTBOUND_KERNEL,
  OUTBOUND_KERNEL_REFUSED,
  INBOUND_KERNEL,
  INBOUND_KERNEL_REFUSED,
  KERNEL_UNCOUNTED, /* a map of the kernel path was full */
  INBOUND_DELIVERED,
  DELIVERY_UNKNOWN, /* a map of deliveries was full */
  INBOUND_UNANSWERED,
  OUTBOUND_LEFT_ALONE,
  COUNTERS
};

#endif
