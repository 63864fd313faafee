/* The maps, and the few questions that several programs ask of them.
 *
 * The loader makes and pins every map before it compiles this (nodeagent/redirect/maps.py), so a restart works on the
 * maps that are in use; PINS is its folder, and the sizes given here only satisfy the macro.
 */
#ifndef NODEAGENT_MAPS_H
#define NODEAGENT_MAPS_H

#include "nodeagent.h"

#define PINNED(type, key, value, name) BPF_TABLE_PINNED(type, key, value, name, 1, PINS "/" #name)

PINNED("array", u32, struct settings, settings);
PINNED("array", u32, u64, heartbeat);
PINNED("percpu_array", u32, u64, counters);
PINNED("hash", u64, struct pod, pods);
PINNED("hash", struct address, u64, addresses);
PINNED("hash", u64, u32, left_alone);
PINNED("lru_hash", u64, struct denied, denied);
PINNED("hash", struct port_key, u32, exclusions);
PINNED("hash", struct port_key, u32, port_modes);
PINNED("hash", struct port_key, u32, probed);
PINNED("sockhash", struct listener_key, u64, listeners);
PINNED("hash", u64, struct original, by_cookie);
PINNED("lru_hash", struct source, struct original, by_source);
PINNED("hash", struct endpoint, struct destination, destinations);
PINNED("hash", struct verdict_key, struct verdict, verdicts);
PINNED("hash", struct endpoint, struct service, services);
PINNED("hash", struct backend_key, struct endpoint, backends);
PINNED("hash", struct flow_key, struct kernel_flow, kernel_flows);
PINNED("lru_hash", struct flow_key, u64, node_flows);
PINNED("hash", struct flow_total_key, struct flow_total, flow_totals);
PINNED("lru_hash", u64, struct address, announced);
PINNED("hash", struct flow_key, struct delivery, deliveries);
PINNED("hash", u64, struct address, clients);
PINNED("hash", u32, struct closed_flows, closed_flows);

#define TCP 6     /* IPPROTO_TCP */
#define AF_INET 2 /* linux/socket.h */
#define LOOPBACK_INTERFACE 1 /* net/core/dev.c: every netns' lo has index 1 (LOOPBACK_IFINDEX) */

/* Word by word: the verifier takes no wider reads of the context, and clang likes to join them. */
#define READ(field) (*(volatile u32 *)&(field))
#define READ_ADDRESS(ctx, name) {.words = {READ(ctx->name[0]), READ(ctx->name[1]), READ(ctx->name[2]), READ(ctx->name[3])}}

static inline void count(u32 which) {
  u64 *slot = counters.lookup(&which);
  if (slot)
    *slot += 1;
}

static inline bool is_ipv4(const struct address *address) {
  return address->words[0] == 0 && address->words[1] == 0 && address->words[2] == bpf_htonl(0xffff);
}

static inline bool same_address(const struct address *one, const struct address *other) {
  return one->words[0] == other->words[0] && one->words[1] == other->words[1] && one->words[2] == other->words[2] && one->words[3] == other->words[3];
}

static inline struct address mapped(u32 ipv4) {
  struct address address = {.words = {0, 0, bpf_htonl(0xffff), ipv4}};
  return address;
}

/* 127/8, ::1, and the unspecified addresses, which connect() takes for them. */
static inline bool is_loopback(const struct address *address) {
  u32 last = bpf_ntohl(address->words[3]);
  if (is_ipv4(address))
    return last >> 24 == 127 || last == 0;
  return !address->words[0] && !address->words[1] && !address->words[2] && last <= 1;
}

static inline bool is_link_local6(const struct address *address) {
  return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static inline bool is_own(u64 netns, const struct address *address) {
  u64 *owner = addresses.lookup((struct address *)address);
  return owner && *owner == netns;
}

static inline bool excluded(u64 netns, u32 direction, u32 port) {
  struct port_key key = {.netns = netns, .direction = direction, .port = port};
  return exclusions.lookup(&key) != NULL;
}

enum judgement { UNDECIDED, ALLOWED, DENIED };

/* What policy says, at this moment, of a connection from the pod *source*. */
static inline u32 judge(u32 source, const struct destination *destination, u32 port) {
  if (destination->verdict == ANY_SOURCE)
    return ALLOWED;
  struct verdict_key key = {.source = source, .destination = destination->pod, .port = port, .generation = destination->generation};
  struct verdict *verdict = verdicts.lookup(&key);
  if (!verdict)
    return UNDECIDED;
  return verdict->allowed ? ALLOWED : DENIED;
}

static inline struct flow_total *total_of(u32 source, u32 destination, u32 port, u32 service) {
  struct flow_total_key key = {.source = source, .destination = destination, .port = port, .service = service};
  struct flow_total *total = flow_totals.lookup(&key);
  if (!total) {
    struct flow_total zero = {};
    flow_totals.insert(&key, &zero);
    total = flow_totals.lookup(&key);
    if (!total)
      count(KERNEL_UNCOUNTED);
  }
  return total;
}

/* A refusal is told with the Service that was dialled, as connections are. */
static inline void count_refusal(u32 source, u32 destination, u32 port, u32 service) {
  struct flow_total *total = total_of(source, destination, port, service);
  if (!total)
    return;
  __sync_fetch_and_add(&total->refused, 1);
  total->refused_at = bpf_ktime_get_ns();
}

/* Beats come several times within the timeout. Signed, because a beat from another CPU may be a moment ahead of this one's clock. */
static inline bool beats(u32 pulse, u64 timeout_ns) {
  u64 *slot = heartbeat.lookup(&pulse);
  u64 beat = slot ? *slot : 0;
  return beat && (s64)(bpf_ktime_get_ns() - beat) < (s64)timeout_ns;
}

static inline bool daemon_alive(const struct settings *node) {
  return beats(PULSE_DAEMON, node->heartbeat_timeout_ns);
}

/* Nobody tells the kernel that a pod is gone and its address another's: what control has not confirmed for so long is not used. */
static inline bool kernel_path_kept(const struct settings *node) {
  return beats(PULSE_KERNEL_PATH, node->kernel_path_timeout_ns);
}

#endif
