/* sockops: now that a captured connection has a source port, tell the daemon by it where the app wanted to go.
 *
 * BPF_SOCK_OPS_TCP_CONNECT_CB runs in tcp_connect() before the SYN leaves, so the entry is there before the daemon can
 * accept, with TCP fast open too. The daemon takes the entry out; by_source is an LRU for those it never sees.
 *
 * by_cookie is left when the connection has ended: the sock_release hook does not run for the sockets that the kernel
 * makes itself (MPTCP's subflows), and a pod must not be able to fill the map with them.
 */
#include "maps.h"

static inline void connecting(struct bpf_sock_ops *ctx, u64 cookie) {
  struct original *to = by_cookie.lookup(&cookie);
  if (!to)
    return;
  struct original copy = *to;
  struct source from = {.netns = bpf_get_netns_cookie(ctx), .port = ctx->local_port};
  if (is_ipv4(&copy.address)) {
    from.address = mapped(ctx->local_ip4);
  } else {
    from.address.words[0] = ctx->local_ip6[0];
    from.address.words[1] = ctx->local_ip6[1];
    from.address.words[2] = ctx->local_ip6[2];
    from.address.words[3] = ctx->local_ip6[3];
  }
  by_source.update(&from, &copy);
  bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

int sockops(struct bpf_sock_ops *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
    connecting(ctx, cookie);
  else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
    by_cookie.delete(&cookie);
  return 1;
}
