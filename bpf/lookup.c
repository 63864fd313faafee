/* sk_lookup: new connections that come to a pod from outside meet the daemon's listener, whatever port they ask for.
 *
 * Attached to each enrolled pod's network namespace. The kernel asks only when no established socket matches, so live
 * connections never get here. SK_DROP answers with a reset. The kernel gives no netns cookie here: the local address,
 * which is the pod's own, stands for it. A reuseport group spreads what is assigned to its first listener over all slots.
 *
 * What the pod sends to itself passes: the app, and the daemon that delivers from inside the pod. The ingress interface does
 * not tell, for a connection to an own address has that address's interface here (orig_oif in net/ipv4/route.c); the source
 * does. From outside it cannot be had: the kernel drops such packets (martian source), and no handshake would complete.
 *
 * On the kernel path a connection is known by the record that sockops made in the client's pod, so its client is proved; it
 * is judged again by the policy of this moment. What has no such record (another node, a forged source) gets the listener.
 *
 * A TCP probe asks whether a port opens, and the listener would open any. What comes to a port that is probed so and where nothing
 * listens is reset, as the application's own kernel would; that somebody listens, sockops and control see.
 *
 * A connection by which a worker delivers over the network, from the client's pod, is known by the record that sockops made of its
 * socket: it was authorised before it was dialled, and goes to the application. The record serves one handshake.
 */
#include "maps.h"

/* A record is for one handshake, which ends long before that; its ports may be another's later. */
#define HANDSHAKE_NS 3000000000ULL

static inline bool from_node(struct flow_key *flow) {
  u64 *opened = node_flows.lookup(flow);
  return opened && bpf_ktime_get_ns() - *opened < HANDSHAKE_NS;
}

static inline int dead(struct bpf_sk_lookup *ctx, const struct pod *pod, u64 netns, struct flow_key *flow) {
  struct port_key key = {.netns = netns, .direction = INBOUND, .port = ctx->local_port};
  u32 *own = port_modes.lookup(&key);
  u32 protection = own ? *own : pod->protection;
  bool refuse = protection & REFUSE_DEAD;
  if (refuse && protection & PROBED && from_node(flow)) {
    count(INBOUND_DEAD_PROBED);
    return SK_PASS;
  }
  count(refuse ? INBOUND_DEAD_REFUSED : INBOUND_DEAD_PASSED);
  return refuse ? SK_DROP : SK_PASS;
}

/* The kernel's part of a verdict, UNDECIDED where the connection is not one of the kernel path. A record serves one handshake;
 * when it is none any more under the policy of now, not even the proxy may take it: there its client would be nobody. */
static inline u32 attested(const struct pod *pod, struct flow_key *key) {
  struct kernel_flow *flow = kernel_flows.lookup(key);
  if (!flow || flow->server || flow->client_closed)
    return UNDECIDED;
  struct endpoint here = {.address = key->destination, .port = key->destination_port};
  struct destination *destination = destinations.lookup(&here);
  u32 judgement = UNDECIDED;
  if (destination && destination->pod == pod->id)
    judgement = judge(flow->source, destination, here.port);
  if (judgement == DENIED)
    count_refusal(flow->source, pod->id, here.port, flow->service);
  count(judgement == ALLOWED ? INBOUND_KERNEL : INBOUND_KERNEL_REFUSED);
  return judgement == ALLOWED ? ALLOWED : DENIED;
}

static inline int assign(struct bpf_sk_lookup *ctx, const struct pod *pod, u64 netns, u32 family, struct flow_key *flow) {
  struct listener_key key = {.netns = netns, .direction = INBOUND, .family = family};
  struct bpf_sock *listener = (void *)listeners.lookup(&key);
  if (!listener)
    return dead(ctx, pod, netns, flow);
  long error = bpf_sk_assign(ctx, listener, 0);
  bpf_sk_release(listener);
  count(error ? INBOUND_ASSIGN_FAILED : INBOUND_CAPTURED);
  return error ? SK_DROP : SK_PASS;
}

static inline bool unanswered(u64 netns, u32 port) {
  struct port_key key = {.netns = netns, .direction = INBOUND, .port = port};
  u32 *listening = probed.lookup(&key);
  return listening && !*listening;
}

static inline int inbound(struct bpf_sk_lookup *ctx, const struct address *local, const struct address *remote, u32 family) {
  u64 *found = addresses.lookup((struct address *)local);
  u64 netns = found ? *found : 0;
  if (is_loopback(remote) || (netns && is_own(netns, remote)))
    return SK_PASS;
  struct pod *pod = pods.lookup(&netns);
  if (!pod) {
    count(INBOUND_UNKNOWN_REFUSED);
    return SK_DROP;
  }
  if (excluded(netns, INBOUND, ctx->local_port)) {
    count(INBOUND_EXCLUDED);
    return SK_PASS;
  }
  /* A pod may take a link-local address for its source, by which no policy knows it. */
  if (is_link_local6(remote) && pod->protection & REFUSE_UNREDIRECTED) {
    count(INBOUND_UNKNOWN_REFUSED);
    return SK_DROP;
  }
  struct flow_key flow = {.source = *remote, .destination = *local, .source_port = bpf_ntohs(ctx->remote_port), .destination_port = ctx->local_port};
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  u32 judgement = node && kernel_path_kept(node) ? attested(pod, &flow) : UNDECIDED;
  if (judgement != UNDECIDED)
    return judgement == ALLOWED ? SK_PASS : SK_DROP;
  if (deliveries.lookup(&flow)) {
    count(INBOUND_DELIVERED);
    return SK_PASS;
  }
  if (unanswered(netns, ctx->local_port)) {
    count(INBOUND_UNANSWERED);
    return SK_DROP;
  }
  if (!node || !daemon_alive(node))
    return dead(ctx, pod, netns, &flow);
  return assign(ctx, pod, netns, family, &flow);
}

int sk_lookup(struct bpf_sk_lookup *ctx) {
  if (ctx->protocol != TCP || ctx->ingress_ifindex == LOOPBACK_INTERFACE)
    return SK_PASS;
  if (ctx->family == AF_INET) {
    struct address local = mapped(ctx->local_ip4), remote = mapped(ctx->remote_ip4);
    return inbound(ctx, &local, &remote, 4);
  }
  struct address local, remote;
  local.words[0] = ctx->local_ip6[0];
  local.words[1] = ctx->local_ip6[1];
  local.words[2] = ctx->local_ip6[2];
  local.words[3] = ctx->local_ip6[3];
  remote.words[0] = ctx->remote_ip6[0];
  remote.words[1] = ctx->remote_ip6[1];
  remote.words[2] = ctx->remote_ip6[2];
  remote.words[3] = ctx->remote_ip6[3];
  return inbound(ctx, &local, &remote, 6);
}
