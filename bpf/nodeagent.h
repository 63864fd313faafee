/* What the kernel programs and the daemon share: every struct once, mirrored by nodeagent/redirect/layout.py
 * (tests/bpf/test_layout.py compares the two). Plain C and UAPI types only, so that any C compiler can read it.
 *
 * Addresses are always 16 bytes in network order; IPv4 is v4-mapped (::ffff:a.b.c.d), so there is one path for both.
 * Ports are in host order. Padding is named and zero, because these structs are hashed byte for byte.
 */
#ifndef NODEAGENT_H
#define NODEAGENT_H

#include <linux/types.h>

struct address {
  __u32 words[4];
};

/* One for the node, written by the loader. */
struct settings {
  __u64 heartbeat_timeout_ns;
  __u64 agent_cgroup; /* id of the daemon's own cgroup, 0: it has none below the captured one */
  __u64 host_netns;   /* cookie of the node's network namespace: hostNetwork pods are not captured */
  __u32 deny_unknown; /* 1: what lives below the captured cgroup and is not enrolled may not connect */
  __u16 outbound_port;
  __u16 inbound_port;
};

/* pods: netns cookie -> struct pod */
struct pod {
  __u32 strict; /* 1: refuse rather than let a connection pass un-redirected */
  __u32 reserved;
  struct address ipv4; /* what getsockname answers on a captured connection; zero: none */
  struct address ipv6;
};

enum direction { OUTBOUND = 0, INBOUND = 1 };

/* exclusions: struct port_key -> __u32 */
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

/* by_cookie: socket cookie -> struct original; by_source: struct source -> struct original */
struct original {
  struct address address;
  __u32 port;
};

/* How the daemon knows an accepted connection: netns cookie of the listener, peer address, peer port. */
struct source {
  __u64 netns;
  struct address address;
  __u32 port;
  __u32 reserved;
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
  INBOUND_ASSIGN_FAILED,
  COUNTERS
};

#endif
