/* sock_release: forgets what was remembered for a connection that never began (a connect() that failed at once). */
#include "maps.h"

int sock_release(struct bpf_sock *ctx) {
  if (ctx->protocol == TCP) {
    u64 cookie = bpf_get_socket_cookie(ctx);
    by_cookie.delete(&cookie);
  }
  return 1;
}
