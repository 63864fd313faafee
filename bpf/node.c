/* node_sockops: the connections that the node's own processes open to pods, such as the kubelet's probes.
 *
 * Attached to the root of the cgroups; everything but the node's own network namespace is left alone. While no daemon looks, sk_lookup
 * lets the node come to the ports that a protected pod declares probes for. A packet's source address would not tell: what the node
 * masquerades (a NodePort, say) has the node's address too.
 */
#include "maps.h"

int node_sockops(struct bpf_sock_ops *ctx) {
  if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
    return 1;
  u32 zero = 0;
  struct settings *node = settings.lookup(&zero);
  if (!node || bpf_get_netns_cookie(ctx) != node->host_netns)
    return 1;
  struct flow_key flow = flow_of(ctx, true);
  u64 now = bpf_ktime_get_ns();
  if (addresses.lookup(&flow.destination))
    node_flows.update(&flow, &now);
  return 1;
}
