/* The socket bypass: bytes between two sockets of this node, moved past TCP. For pods that ask for it: from app to app on
 * the kernel path, after authorisation; otherwise from app to proxy, which authorises, and from there to the other app.
 *
 * Both sockets of a connection are put into a sockhash when it is established. Each direction is decided when its sender
 * first sends: past TCP if the receiver is there by then, otherwise by TCP for ever, because a receiver reads what came past
 * TCP first. So the one change that keeps the order is from past TCP to TCP, and it is made, for ever too, when the receiver
 * leaves unread what would fill a TCP window: nothing else bounds that queue.
 *
 * What goes past TCP is seen by no other program and in none of TCP's counters; it is counted here.
 */
#include "maps.h"
#include "bypass.h"

/* BCC's macro for tables has no pinned sockhash with these two methods. */
struct bypass_sockets_table_t {
  struct bypass_side key;
  u64 leaf;
  int (*sock_hash_update)(void *, void *, u64);
  int (*msg_redirect_hash)(void *, void *, u64);
  u32 max_entries;
};
__attribute__((section("maps/sockhash:" PINS "/bypass_sockets"))) struct bypass_sockets_table_t bypass_sockets = {.max_entries = 1};
BPF_ANNOTATE_KV_PAIR(bypass_sockets, struct bypass_side, u64);
PINNED("hash", struct bypass_side, struct bypass_stream, bypass_streams);

/* What a receiver may leave unread. A message more may come on top of it: 17 fragments, net/core/skmsg.c. */
#define BYPASS_UNREAD (256 << 10)

static inline struct bypass_side bypass_other(const struct bypass_side *side) {
  struct bypass_side other = {.netns = side->netns, .local = side->remote, .remote = side->local, .local_port = side->remote_port, .remote_port = side->local_port};
  return other;
}

/* Word by word: the verifier takes no wider reads here, and clang likes to join them. */
#define CONTEXT(field) (*(volatile u32 *)&(field))

/* The addresses of a bpf_sock_ops or sk_msg_md, whose fields have the same names. An MPTCP or dual-stack socket that
 * carries IPv4 has family 10 and mapped addresses. */
#define BYPASS_SIDE(side, ctx)                                                 \
  do {                                                                         \
    if (ctx->family == AF_INET) {                                              \
      side.local = mapped(ctx->local_ip4);                                     \
      side.remote = mapped(ctx->remote_ip4);                                   \
    } else {                                                                   \
      side.local.words[0] = CONTEXT(ctx->local_ip6[0]);                        \
      side.local.words[1] = CONTEXT(ctx->local_ip6[1]);                        \
      side.local.words[2] = CONTEXT(ctx->local_ip6[2]);                        \
      side.local.words[3] = CONTEXT(ctx->local_ip6[3]);                        \
      side.remote.words[0] = CONTEXT(ctx->remote_ip6[0]);                      \
      side.remote.words[1] = CONTEXT(ctx->remote_ip6[1]);                      \
      side.remote.words[2] = CONTEXT(ctx->remote_ip6[2]);                      \
      side.remote.words[3] = CONTEXT(ctx->remote_ip6[3]);                      \
    }                                                                          \
    side.local_port = ctx->local_port;                                         \
    side.remote_port = bpf_ntohl(ctx->remote_port);                            \
    side.netns = same_address(&side.local, &side.remote) ? bpf_get_netns_cookie(ctx) : 0; \
  } while (0)

/* For sockops, on both sides, when a connection is established that may go past TCP. */
static inline void bypass_join(struct bpf_sock_ops *ctx) {
  struct bypass_side side = {};
  struct bpf_sock *socket = ctx->sk;
  if (!UNREAD_OFFSET || !socket)
    return;
  BYPASS_SIDE(side, ctx);
  /* Data in the SYN (TCP fast open) went by TCP already. */
  struct bypass_stream stream = {.way = ctx->data_segs_out ? BYPASS_TCP : BYPASS_UNDECIDED, .socket = (u64)socket};
  if (bypass_streams.update(&side, &stream))
    return;
  long error = bypass_sockets.sock_hash_update(ctx, &side, BPF_ANY);
  if (error) {
    bypass_streams.delete(&side);
    return;
  }
  struct bypass_stream *joined = bypass_streams.lookup(&side);
  if (joined)
    joined->joined = 1;
}

/* For sockops, when a socket has closed: forget its side; returns the bytes that it sent past TCP. The sockhash drops closed sockets by itself. */
static inline u64 bypass_leave(struct bpf_sock_ops *ctx) {
  struct bypass_side side = {};
  BYPASS_SIDE(side, ctx);
  struct bypass_stream *stream = bypass_streams.lookup(&side);
  if (!stream)
    return 0;
  u64 bytes = stream->bytes;
  bypass_streams.delete(&side);
  return bytes;
}

/* Whether a receiver has read enough of what came: sk_rmem_alloc. Of one that is gone, anything; there is nothing to overflow then. */
static inline bool bypass_reads(const struct bypass_stream *receiver) {
#if UNREAD_OFFSET
  u32 unread = 0;
  return !bpf_probe_read_kernel(&unread, sizeof(unread), (void *)(receiver->socket + UNREAD_OFFSET)) && unread < BYPASS_UNREAD;
#else /* a kernel that may not even let this program be, and no socket is joined */
  return false;
#endif
}

int bypass_message(struct sk_msg_md *ctx) {
  struct bypass_side side = {};
  BYPASS_SIDE(side, ctx);
  struct bypass_stream *stream = bypass_streams.lookup(&side);
  if (!stream)
    return SK_PASS;
  if (stream->way == BYPASS_TCP)
    return SK_PASS;
  struct bypass_side peer = bypass_other(&side);
  struct bypass_stream *other = bypass_streams.lookup(&peer);
  stream->way = other && other->joined && bypass_reads(other) ? BYPASS_SOCKET : BYPASS_TCP;
  if (stream->way == BYPASS_TCP)
    return SK_PASS;
  u32 size = ctx->size;
  /* A receiver that has closed is not there any more: TCP answers with the reset that the sender expects. */
  long verdict = bypass_sockets.msg_redirect_hash(ctx, &peer, BPF_F_INGRESS);
  if (verdict != SK_PASS)
    return SK_PASS;
  stream->bytes += size;
  stream->messages += 1;
  return SK_PASS;
}
