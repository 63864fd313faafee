/* node_sockops: the connections that the node's own processes open to pods: the kubelet's probes, and what the agent delivers.
 *
 * Attached to the root of the cgroups, so that it runs wherever the daemon is. While no daemon looks, sk_lookup
 * lets the node come to the ports that a protected pod declares probes for. A packet's source address would not tell: what the node
 * masquerades (a NodePort, say) has the node's address too.
 *
 * A worker announces the sockets, inside pods, by which it is about to reach an application. Before the SYN leaves that becomes a
 * record by addresses and ports, by which sk_lookup and sockops know the connection; a dial that fails takes it back.
 */
#include "maps.h"

static inline void delivering(struct bpf_sock_ops *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  struct address *client = announced.lookup(&cookie);
  if (!client)
    return;
  struct flow_key key = flow_of(ctx, true);
  struct delivery delivery = {.dialler = cookie, .client = *client};
  announced.delete(&cookie);
  if (deliveries.update(&key, &delivery))
    count(DELIVERY_UNKNOWN);
  watch_state(ctx);
}

static inline void undelivered(struct bpf_sock_ops *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  struct flow_key key = flow_of(ctx, true);
  struct delivery *delivery = deliveries.lookup(&key);
  if (delivery && delivery->dialler == cookie)
    deliveries.delete(&key);
}

static inline void probing(struct bpf_sock_ops *ctx) {
  struct flow_key flow = flow_of(ctx, true);
  u64 now = bpf_ktime_get_ns();
  if (addresses.lookup(&flow.destination))
    node_flows.update(&flow, &now);
}

int node_sockops(struct bpf_sock_ops *ctx) {
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  if (node && ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
    if (bpf_get_netns_cookie(ctx) == node->host_netns)
      probing(ctx);
    else
      delivering(ctx);
  } else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE) {
    undelivered(ctx);
  }
  return 1;
}
