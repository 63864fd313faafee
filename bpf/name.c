/* getpeername4/6 and getsockname4/6: a captured connection looks to the app like the one it asked for.
 *
 * One on the kernel path has its real name; only its peer may have been dialled by a ClusterIP.
 *
 * One that a worker delivered has its client's address as its peer's, wherever it was dialled from; accept() asks here too. The port
 * is that of the worker's socket, so that no two connections have one name.
 *
 * Only sockets in by_cookie and clients, that is, those which the connect programs or a worker took, are touched. The verdict is always 1.
 */
#include "maps.h"

static inline struct original *captured(struct bpf_sock_addr *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  return by_cookie.lookup(&cookie);
}

static inline const struct address *delivered_for(struct bpf_sock_addr *ctx) {
  u64 cookie = bpf_get_socket_cookie(ctx);
  return clients.lookup(&cookie);
}

static inline void show4(struct bpf_sock_addr *ctx, const struct address *address) {
  ctx->user_ip4 = address->words[3];
}

static inline void show6(struct bpf_sock_addr *ctx, const struct address *address) {
  ctx->user_ip6[0] = address->words[0];
  ctx->user_ip6[1] = address->words[1];
  ctx->user_ip6[2] = address->words[2];
  ctx->user_ip6[3] = address->words[3];
}

/* The pod's own address in the family of the connection; none when the pod is gone or has no such address. */
static inline const struct address *own(struct bpf_sock_addr *ctx, const struct original *to) {
  u64 netns = bpf_get_netns_cookie(ctx);
  struct pod *pod = pods.lookup(&netns);
  if (!pod)
    return NULL;
  const struct address *address = is_ipv4(&to->asked.address) ? &pod->ipv4 : &pod->ipv6;
  return address->words[3] ? address : NULL;
}

int getpeername4(struct bpf_sock_addr *ctx) {
  struct original *to = captured(ctx);
  if (to) {
    show4(ctx, &to->asked.address);
    ctx->user_port = bpf_htons(to->asked.port);
    return 1;
  }
  const struct address *client = delivered_for(ctx);
  if (client)
    show4(ctx, client);
  return 1;
}

int getpeername6(struct bpf_sock_addr *ctx) {
  struct original *to = captured(ctx);
  if (to) {
    show6(ctx, &to->asked.address);
    ctx->user_port = bpf_htons(to->asked.port);
    return 1;
  }
  const struct address *client = delivered_for(ctx);
  if (client)
    show6(ctx, client);
  return 1;
}

int getsockname4(struct bpf_sock_addr *ctx) {
  struct original *to = captured(ctx);
  const struct address *address = to && !to->kernel ? own(ctx, to) : NULL;
  if (address)
    show4(ctx, address);
  return 1;
}

int getsockname6(struct bpf_sock_addr *ctx) {
  struct original *to = captured(ctx);
  const struct address *address = to && !to->kernel ? own(ctx, to) : NULL;
  if (address)
    show6(ctx, address);
  return 1;
}
