/* sockops: what becomes known of a connection once it has a source port.
 *
 * BPF_SOCK_OPS_TCP_CONNECT_CB runs in tcp_connect() before the SYN leaves, so the entry is there before anybody can
 * accept, with TCP fast open too. A redirected connection's original destination is told to the daemon by its source: it takes
 * the entry out; by_source is an LRU for those it never sees. One on the kernel path gets its record, by which sk_lookup knows it.
 *
 * A worker's connection to an application is known (node.c) until the server's end is established; from then on the application's
 * socket has the name that the worker gave for the client (name.c).
 *
 * by_cookie is left when the connection has ended: the sock_release hook does not run for the sockets that the kernel
 * makes itself (MPTCP's subflows), and a pod must not be able to fill the map with them.
 *
 * A kernel-path connection's bytes are counted when both ends are closed. What an end sent, and had acknowledged, is short of
 * what the other received where the connection was cut; what it received is not known to the byte in FIN_WAIT2, where a FIN
 * may be counted with it. Both are bounds from below, and one of the two is exact.
 */
#include "maps.h"

/* The socket's own end is the flow's source where it is the client's, otherwise its destination. */
static inline struct flow_key flow_of(struct bpf_sock_ops *ctx, bool client) {
  struct address local = mapped(ctx->local_ip4), remote = mapped(ctx->remote_ip4);
  if (ctx->family != AF_INET) { /* IPv4 on an IPv6 socket is mapped already */
    struct address local6 = READ_ADDRESS(ctx, local_ip6), remote6 = READ_ADDRESS(ctx, remote_ip6);
    local = local6;
    remote = remote6;
  }
  u32 local_port = ctx->local_port, remote_port = bpf_ntohl(ctx->remote_port);
  struct flow_key key = {.source = client ? local : remote,
                         .destination = client ? remote : local,
                         .source_port = client ? local_port : remote_port,
                         .destination_port = client ? remote_port : local_port};
  return key;
}

static inline void watch_state(struct bpf_sock_ops *ctx) {
  bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static inline void redirected(struct bpf_sock_ops *ctx, const struct original *to) {
  struct flow_key ends = flow_of(ctx, true);
  struct source from = {.netns = bpf_get_netns_cookie(ctx), .address = ends.source, .port = ends.source_port};
  by_source.update(&from, (struct original *)to);
}

/* One more of its client's. Two that end at once on two CPUs may take one place: then one of them leaves no row. */
static inline void remember(const struct closed_flow *ended) {
  u32 client = ended->flow.source;
  struct closed_flows *ring = closed_flows.lookup(&client);
  if (ring)
    ring->flows[ring->next++ & (CLOSED_FLOWS - 1)] = *ended;
}

/* Both ends of a connection are known, or never will be: count its bytes. Of several who try, one can delete. */
static inline void settle(struct flow_key *key, struct kernel_flow *flow) {
  struct closed_flow ended = {.ends = *key, .flow = *flow, .closed = bpf_ktime_get_ns()};
  struct flow_end *client = &ended.flow.ends[0], *server = &ended.flow.ends[1];
  struct flow_total *total = total_of(flow->source, flow->destination, key->destination_port, flow->service);
  if (kernel_flows.delete(key))
    return;
  remember(&ended);
  if (!total)
    return;
  __sync_fetch_and_add(&total->received, client->sent > server->received ? client->sent : server->received);
  __sync_fetch_and_add(&total->sent, server->sent > client->received ? server->sent : client->received);
}

/* Without a record sk_lookup takes the connection for a stranger's. None is made under an address that is not the pod's: anybody may
 * bind one (IPV6_FREEBIND). Nor over one of the pod's own that lives: sockets that are bound to different devices may have the same ends,
 * and what has no record no policy closes. Another pod's is left from when the address was that one's. */
static inline void begin(struct bpf_sock_ops *ctx, u64 cookie, const struct original *to) {
  struct flow_key key = flow_of(ctx, true);
  struct endpoint there = {.address = key.destination, .port = key.destination_port};
  u64 netns = bpf_get_netns_cookie(ctx);
  struct pod *pod = pods.lookup(&netns);
  struct destination *destination = destinations.lookup(&there);
  if (!pod || !destination || !is_own(netns, &key.source))
    return;
  u32 flags = pod->bypass ? destination->flags : destination->flags & ~FLOW_BYPASS;
  struct kernel_flow flow = {.client = cookie, .source = pod->id, .destination = destination->pod, .service = to->service, .flags = flags};
  struct kernel_flow *before = kernel_flows.lookup(&key);
  if (before && before->client == cookie)
    return; /* by this program at another cgroup: see to_listener() */
  if (before && !before->client_closed && before->source == pod->id)
    return;
  if (before) /* the port is used again, and the server's end is still open */
    settle(&key, before);
  if (kernel_flows.update(&key, &flow))
    count(KERNEL_UNCOUNTED);
}

static inline void delivered(struct bpf_sock_ops *ctx, struct flow_key *key, u64 cookie) {
  struct delivery *delivery = deliveries.lookup(key);
  if (!delivery)
    return;
  if (!same_address(&delivery->client, &key->source)) {
    if (clients.update(&cookie, &delivery->client))
      count(DELIVERY_UNKNOWN);
    watch_state(ctx);
  }
  deliveries.delete(key);
}

static inline void connecting(struct bpf_sock_ops *ctx, u64 cookie) {
  struct original *to = by_cookie.lookup(&cookie);
  if (!to)
    return;
  if (to->kernel)
    begin(ctx, cookie, to);
  else
    redirected(ctx, to);
  watch_state(ctx);
}

/* The two legs of a proxied connection, from the app to the listener in its pod and from the proxy, inside the server's pod, to the
 * app, are joined for pods that ask for it. Both ends of a leg have the pod's address, or the loopback's where the app was redirected. */
static inline void leg(struct bpf_sock_ops *ctx, const struct flow_key *ends) {
  if (!same_address(&ends->source, &ends->destination))
    return;
  u32 zero = 0;
  u64 netns = bpf_get_netns_cookie(ctx);
  struct pod *pod = pods.lookup(&netns);
  struct settings *node = settings.lookup(&zero);
  if (!pod || !pod->bypass || !node || (is_loopback(&ends->source) && ends->destination_port != node->outbound_port))
    return;
  watch_state(ctx);
  bypass_join(ctx);
}

/* What bears a foreign address is neither end: a pod may give itself anybody's, and accept under it. Of two sockets of the client's pod
 * with the same ends, the one that is answered is the client. */
static inline void established(struct bpf_sock_ops *ctx, u64 cookie, bool client) {
  struct flow_key key = flow_of(ctx, client);
  bool own = is_own(bpf_get_netns_cookie(ctx), client ? &key.source : &key.destination);
  struct kernel_flow *flow = own ? kernel_flows.lookup(&key) : NULL;
  if (!flow && !client && own)
    delivered(ctx, &key, cookie);
  if (!flow)
    leg(ctx, &key);
  if (!flow || flow->client_closed || (client ? flow->opened : flow->server))
    return;
  if (client) {
    flow->client = cookie;
    flow->opened = bpf_ktime_get_ns();
    struct flow_total *total = total_of(flow->source, flow->destination, key.destination_port, flow->service);
    if (total)
      __sync_fetch_and_add(&total->opened, 1);
  } else {
    flow->server = cookie;
    watch_state(ctx);
  }
  if (flow->flags & FLOW_HTTP) {
    struct http_key http = {.source = flow->source, .destination = flow->destination, .service = flow->service, .port = key.destination_port};
    http_begin(ctx, cookie, flow->client, client ? HTTP_CLIENT : HTTP_SERVER, &http);
  }
  if (flow->flags & FLOW_BYPASS)
    bypass_join(ctx);
}

/* What the end that is closing has carried. The kernel counts its SYN, where it is a client, and FINs as if they were data. */
static inline struct flow_end carried(struct bpf_sock_ops *ctx, u32 syn) {
  u32 before = ctx->args[0];
  bool received = before == BPF_TCP_CLOSE_WAIT || before == BPF_TCP_LAST_ACK || before == BPF_TCP_CLOSING;
  bool acknowledged = (before == BPF_TCP_LAST_ACK || before == BPF_TCP_CLOSING) && ctx->snd_una == ctx->snd_nxt;
  bool both = before == BPF_TCP_FIN_WAIT2; /* received: perhaps */
  u64 sent = ctx->bytes_acked - syn - (acknowledged || both), got = ctx->bytes_received;
  struct flow_end end = {.sent = sent, .received = got ? got - (received || both) : 0};
  return end;
}

static inline void ended(struct bpf_sock_ops *ctx, u64 cookie) {
  bool client = true;
  struct flow_key key = flow_of(ctx, true);
  struct kernel_flow *flow = kernel_flows.lookup(&key);
  if (!flow || flow->client != cookie) {
    client = false;
    key = flow_of(ctx, false);
    flow = kernel_flows.lookup(&key);
    if (!flow || flow->server != cookie) {
      bypass_leave(ctx); /* a proxied connection's; or the record went when the client's port was used again */
      return;
    }
  }
  if (client ? flow->client_closed : flow->server_closed)
    return; /* as in begin() */
  struct flow_total *total = client ? total_of(flow->source, flow->destination, key.destination_port, flow->service) : NULL;
  if (total)
    __sync_fetch_and_add(flow->opened ? &total->closed : &total->failed, 1);
  if (!client || flow->opened) {
    struct flow_end end = carried(ctx, client);
    if (flow->flags & FLOW_BYPASS)
      end.sent += bypass_leave(ctx);
    flow->ends[client ? 0 : 1] = end;
  }
  /* The barrier: of two that close at once, at least one sees that the other has, and what it carried. */
  __sync_fetch_and_add(client ? &flow->client_closed : &flow->server_closed, 1);
  if (client ? !flow->server || flow->server_closed : flow->client_closed)
    settle(&key, flow);
}

/* listen(2): a port that is probed opens, at an address that can be reached from outside. When it closes, control sees. */
static inline void listening(struct bpf_sock_ops *ctx) {
  struct flow_key ends = flow_of(ctx, true);
  if (is_loopback(&ends.source) && ends.source.words[3])
    return;
  struct port_key key = {.netns = bpf_get_netns_cookie(ctx), .direction = INBOUND, .port = ends.source_port};
  u32 *there = probed.lookup(&key);
  if (there)
    *there = 1;
}

int sockops(struct bpf_sock_ops *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
    connecting(ctx, cookie);
  } else if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
    established(ctx, cookie, true);
  } else if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
    established(ctx, cookie, false);
  } else if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB) {
    listening(ctx);
  } else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE) {
    by_cookie.delete(&cookie);
    http_finish(cookie);
    clients.delete(&cookie);
    ended(ctx, cookie);
  }
  return 1;
}
