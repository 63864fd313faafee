/* The socket bypass: bytes between two sockets of this node, moved past TCP. For pods that ask for it: from app to app on
 * the kernel path, after authorisation; otherwise from app to proxy, which authorises, and from there to the other app.
 *
 * Both sockets of a connection are put into a sockhash when it is established. Each direction is decided when its sender
 * first sends: past TCP if the receiver is there by then, otherwise by TCP for ever, because a receiver reads what came past
 * TCP first. So the one change that keeps the order is from past TCP to TCP, and it is made, for ever too, when the receiver
 * leaves unread what would fill a TCP window, since nothing else bounds that queue; or when TCP got bytes in another way, as
 * from a thread that was already sending while the connection was being made.
 *
 * A joined socket gets no upper layer protocol: kTLS would neither encrypt what goes past TCP nor decrypt what comes so.
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
#define TCP_ULP 31 /* linux/tcp.h */

static inline struct bypass_side bypass_other(const struct bypass_side *side) {
  struct bypass_side other = {.netns = side->netns, .local = side->remote, .remote = side->local, .local_port = side->remote_port, .remote_port = side->local_port};
  return other;
}

/* The two ends of *ctx*, whose addresses have these names, as its socket sees itself. An MPTCP or dual-stack socket that carries IPv4
 * has family 10 and mapped addresses. */
#define BYPASS_ENDS(side, ctx, local4, local6, remote4, remote6)                             \
  do {                                                                                       \
    struct address local = mapped(ctx->local4), remote = mapped(ctx->remote4);               \
    if (ctx->family != AF_INET) {                                                            \
      struct address long_local = READ_ADDRESS(ctx, local6), long_remote = READ_ADDRESS(ctx, remote6); \
      local = long_local;                                                                    \
      remote = long_remote;                                                                  \
    }                                                                                        \
    side.local = local;                                                                      \
    side.remote = remote;                                                                    \
  } while (0)

/* Of a bpf_sock_ops or sk_msg_md, whose fields have the same names. */
#define BYPASS_SIDE(side, ctx)                                                               \
  do {                                                                                       \
    BYPASS_ENDS(side, ctx, local_ip4, local_ip6, remote_ip4, remote_ip6);                    \
    side.local_port = ctx->local_port;                                                       \
    side.remote_port = bpf_ntohl(ctx->remote_port);                                          \
    side.netns = same_address(&side.local, &side.remote) ? bpf_get_netns_cookie(ctx) : 0;    \
  } while (0)

/* bpf_probe_read_kernel(), by a name of our own. BCC looks for that one among the kernel's symbols, and where those are hidden (kernel.kptr_restrict,
 * a container's masked /proc/kallsyms) it puts bpf_probe_read() in its place, which no program of this kind may call. */
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;

/* Reads a word of kernel memory. False where it cannot be read, and always where no socket is joined: the kernel may be locked down, and
 * take no program that reads it. */
static inline bool bypass_peek(u64 address, u32 *word) {
#if UNREAD_OFFSET
  return !read_kernel(word, sizeof(*word), (void *)address);
#else
  return false;
#endif
}

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
  /* Out of the map the socket's address is a number, to which the verifier lets us add. */
  struct bypass_stream *joined = bypass_streams.lookup(&side);
  long error = -1;
  if (joined && bypass_peek(joined->socket + WRITTEN_OFFSET, &joined->written))
    error = bypass_sockets.sock_hash_update(ctx, &side, BPF_ANY);
  if (error)
    bypass_streams.delete(&side);
  else
    joined->joined = 1;
}

/* For sockops, when a socket has closed: forget its side; returns the bytes that it sent past TCP. The sockhash drops closed sockets by itself.
 * A socket that was not joined may have had the same ends. */
static inline u64 bypass_leave(struct bpf_sock_ops *ctx) {
  struct bypass_side side = {};
  struct bpf_sock *socket = ctx->sk;
  BYPASS_SIDE(side, ctx);
  struct bypass_stream *stream = bypass_streams.lookup(&side);
  if (!stream || stream->socket != (u64)socket)
    return 0;
  u64 bytes = stream->bytes;
  bypass_streams.delete(&side);
  return bytes;
}

/* Whether all that a sender sent has gone past TCP. */
static inline bool bypass_whole(const struct bypass_stream *sender) {
  u32 written = 0;
  return bypass_peek(sender->socket + WRITTEN_OFFSET, &written) && written == sender->written;
}

/* Whether a receiver has read enough of what came: sk_rmem_alloc. Of one that is gone, anything; there is nothing to overflow then. */
static inline bool bypass_reads(const struct bypass_stream *receiver) {
  u32 unread = 0;
  return bypass_peek(receiver->socket + UNREAD_OFFSET, &unread) && unread < BYPASS_UNREAD;
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
  stream->way = other && other->joined && bypass_whole(stream) && bypass_reads(other) ? BYPASS_SOCKET : BYPASS_TCP;
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

/* cgroup/setsockopt, the pods' cgroup, where sockets are joined at all. EPERM for TCP_ULP is what programs take for a kernel without kTLS. */
int setsockopt(struct bpf_sockopt *ctx) {
  ctx->optlen = 0; /* nothing is changed: the kernel takes the caller's own value, of any length */
  if (ctx->level != TCP || ctx->optname != TCP_ULP)
    return 1;
  struct bypass_side side = {};
  struct bpf_sock *socket = ctx->sk;
  BYPASS_ENDS(side, socket, src_ip4, src_ip6, dst_ip4, dst_ip6);
  side.local_port = socket->src_port;
  side.remote_port = bpf_ntohs(socket->dst_port);
  side.netns = same_address(&side.local, &side.remote) ? bpf_get_netns_cookie(ctx) : 0;
  return bypass_streams.lookup(&side) ? 0 : 1;
}
