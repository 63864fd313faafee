/* sock_release: by_cookie holds what is open and nothing else. */
#include "maps.h"

int sock_release(struct bpf_sock *ctx) {
  if (ctx->protocol == TCP) {
    u64 cookie = bpf_get_socket_cookie(ctx);
    by_cookie.delete(&cookie);
  }
  return 1;
}
