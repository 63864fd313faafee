/* connect4, connect6: what a pod dials goes to the listener in its own network namespace.
 *
 * What needs no proxy goes to the endpoint itself: a connection to a pod of this node whose policies are decided here.
 *
 * The verdicts are those of kernel/bpf/cgroup.c: 1 lets connect() go on (with what we wrote into ctx), 0 is EPERM.
 */
#include "maps.h"

enum outcome { REFUSE = 0, PASS = 1, REDIRECT = 2, DIRECT = 3 };
#define ECONNREFUSED 111    /* asm-generic/errno.h */
#define SOL_SOCKET 1        /* asm-generic/socket.h */
#define SO_BINDTOIFINDEX 62 /* the same */

/* Depth of cgroups that is searched for the daemon's own; kubelet's are 3 to 6 deep. */
#define CGROUP_DEPTH 12

/* As a DaemonSet the daemon lives below the captured cgroup: its own sockets must not come back to it for ever.
 * Nor must those of the daemons before it, which may be ending their connections beside it.
 * The depth of its cgroup is not asked for: within a cgroup namespace it cannot be known. */
static inline bool is_agent(const struct settings *node) {
  if (!node->agent_cgroup && !node->earlier_cgroups[0])
    return false;
#pragma unroll
  for (int level = 1; level <= CGROUP_DEPTH; level++) {
    u64 ancestor = bpf_get_current_ancestor_cgroup_id(level);
    if (!ancestor)
      return false;
    if (ancestor == node->agent_cgroup)
      return true;
#pragma unroll
    for (int one = 0; one < EARLIER_CGROUPS; one++)
      if (ancestor == node->earlier_cgroups[one])
        return true;
  }
  return false;
}

/* A listener that is gone says sooner than the heartbeat that the daemon is. */
static inline bool has_listener(u64 netns, const struct address *address) {
  struct listener_key key = {.netns = netns, .direction = OUTBOUND, .family = is_ipv4(address) ? 4 : 6};
  struct bpf_sock *listener = (void *)listeners.lookup(&key);
  if (!listener)
    return false;
  bpf_sk_release(listener);
  return true;
}

/* A connection that is not redirected: the pod's protection says whether it may pass; the two counters stand side by side. */
static inline int fail(const struct pod *pod, u32 why, u32 passed) {
  bool refuse = pod->protection & why;
  count(refuse ? passed + 1 : passed);
  return refuse ? REFUSE : PASS;
}

/* Of two that are refused at once on two CPUs, one may not be counted here. */
static inline void note_denied(u64 netns) {
  struct denied *before = denied.lookup(&netns);
  struct denied now = {.cgroup = bpf_get_current_cgroup_id(), .refused = before ? before->refused + 1 : 1, .refused_at = bpf_ktime_get_ns()};
  denied.update(&netns, &now);
}

/* A pod that is not enrolled: it is known to be outside of the mesh, or nobody has said yet what it is. */
static inline int outside(const struct settings *node, u64 netns) {
  if (left_alone.lookup(&netns)) {
    count(OUTBOUND_LEFT_ALONE);
    return PASS;
  }
  count(node->deny_unknown ? OUTBOUND_UNKNOWN_DENIED : OUTBOUND_UNKNOWN_ALLOWED);
  if (!node->deny_unknown)
    return PASS;
  note_denied(netns);
  return REFUSE;
}

/* Pick an endpoint where a ClusterIP is dialled, and judge where policy is decided here. REDIRECT: that is for the proxy. */
static inline int kernel_path(const struct pod *pod, struct original *to) {
  struct endpoint there = to->asked;
  struct service *service = services.lookup(&there);
  if (service && service->count) {
    struct backend_key key = {.set = service->set, .slot = bpf_get_prandom_u32() % service->count};
    struct endpoint *chosen = backends.lookup(&key);
    if (!chosen)
      return REDIRECT; /* the set was replaced at this moment */
    there = *chosen;
    to->chosen = there;
    to->service = service->number;
  }
  struct destination *destination = destinations.lookup(&there);
  if (!destination)
    return REDIRECT;
  u32 judgement = judge(pod->id, destination, there.port);
  if (judgement == UNDECIDED)
    return REDIRECT;
  count(judgement == ALLOWED ? OUTBOUND_KERNEL : OUTBOUND_KERNEL_REFUSED);
  if (judgement == DENIED) {
    count_refusal(pod->id, destination->pod, there.port, to->service);
    bpf_set_retval(-ECONNREFUSED);
    return REFUSE;
  }
  to->kernel = 1;
  return DIRECT;
}

/* lo cannot be reached through another device, so a socket that is bound to one is taken off it. To bind it needed no privilege, but this does:
 * for a process without CAP_NET_RAW (sock_bindtoindex) the connection cannot be redirected. What comes of that is the server's side's
 * to refuse: there its source says whose it is. */
static inline bool unbound(struct bpf_sock_addr *ctx) {
  struct bpf_sock *socket = ctx->sk;
  int none = 0;
  return !socket || !socket->bound_dev_if || !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &none, sizeof(none));
}

/* The whole decision, IPv4 and IPv6 alike. */
static inline int decide(struct bpf_sock_addr *ctx, u64 netns, u64 cookie, struct original *to) {
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  if (!node || is_agent(node) || netns == node->host_netns || is_loopback(&to->asked.address))
    return PASS;
  if (is_own(netns, &to->asked.address))
    return PASS;
  if (excluded(netns, OUTBOUND, to->asked.port)) {
    count(OUTBOUND_EXCLUDED);
    return PASS;
  }
  struct pod *pod = pods.lookup(&netns);
  if (!pod)
    return outside(node, netns);
  int way = kernel_path_kept(node) ? kernel_path(pod, to) : REDIRECT;
  if (way == REFUSE)
    return REFUSE;
  if (way == REDIRECT) {
    if (!daemon_alive(node) || !has_listener(netns, &to->asked.address))
      return fail(pod, REFUSE_DEAD, OUTBOUND_DEAD_PASSED);
    /* A link-local address means nothing without its scope. */
    if (is_link_local6(&to->asked.address) || !unbound(ctx))
      return fail(pod, REFUSE_UNREDIRECTED, OUTBOUND_UNREDIRECTABLE_PASSED);
  }
  if (by_cookie.update(&cookie, to))
    return fail(pod, REFUSE_UNREDIRECTED, OUTBOUND_FULL_PASSED);
  if (way == REDIRECT)
    count(OUTBOUND_CAPTURED);
  return way;
}

/* While what is captured becomes another cgroup, a program is at both, one above the other, and the second sees what the first has
 * redirected. Who dials the listener itself after a failure gets what the failed attempt would have got. */
static inline bool to_listener(const struct original *to) {
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  return node && is_loopback(&to->asked.address) && to->asked.port == node->outbound_port;
}

/* A socket may connect again after a failure, so what an earlier attempt left is forgotten unless this one leaves something. */
static inline int outbound(struct bpf_sock_addr *ctx, u64 netns, u64 cookie, struct original *to) {
  int way = decide(ctx, netns, cookie, to);
  if ((way == PASS && !to_listener(to)) || way == REFUSE)
    by_cookie.delete(&cookie);
  return way;
}

static inline u32 listener_port(void) {
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  return node ? bpf_htons(node->outbound_port) : 0;
}

static inline bool is_tcp(struct bpf_sock_addr *ctx) {
  return ctx->protocol == TCP;
}

int connect4(struct bpf_sock_addr *ctx) {
  if (!is_tcp(ctx))
    return PASS;
  struct original to = {.asked = {.address = mapped(ctx->user_ip4), .port = bpf_ntohs(ctx->user_port)}};
  int way = outbound(ctx, bpf_get_netns_cookie(ctx), bpf_get_socket_cookie(ctx), &to);
  if (way == REDIRECT) {
    ctx->user_ip4 = bpf_htonl(0x7f000001);
    ctx->user_port = listener_port();
  } else if (way == DIRECT && to.chosen.port) {
    ctx->user_ip4 = to.chosen.address.words[3];
    ctx->user_port = bpf_htons(to.chosen.port);
  }
  return way == REFUSE ? REFUSE : PASS;
}

int connect6(struct bpf_sock_addr *ctx) {
  if (!is_tcp(ctx))
    return PASS;
  struct original to = {.asked.port = bpf_ntohs(ctx->user_port)};
  to.asked.address.words[0] = ctx->user_ip6[0];
  to.asked.address.words[1] = ctx->user_ip6[1];
  to.asked.address.words[2] = ctx->user_ip6[2];
  to.asked.address.words[3] = ctx->user_ip6[3];
  int way = outbound(ctx, bpf_get_netns_cookie(ctx), bpf_get_socket_cookie(ctx), &to);
  if (way == REDIRECT) {
    bool ipv4 = is_ipv4(&to.asked.address);
    ctx->user_ip6[0] = 0;
    ctx->user_ip6[1] = 0;
    ctx->user_ip6[2] = ipv4 ? bpf_htonl(0xffff) : 0;
    ctx->user_ip6[3] = ipv4 ? bpf_htonl(0x7f000001) : bpf_htonl(1);
    ctx->user_port = listener_port();
  } else if (way == DIRECT && to.chosen.port) {
    ctx->user_ip6[0] = to.chosen.address.words[0];
    ctx->user_ip6[1] = to.chosen.address.words[1];
    ctx->user_ip6[2] = to.chosen.address.words[2];
    ctx->user_ip6[3] = to.chosen.address.words[3];
    ctx->user_port = bpf_htons(to.chosen.port);
  }
  return way == REFUSE ? REFUSE : PASS;
}
