/* http_egress: HTTP/1 requests of kernel-path flows, counted as their packets leave. Observation only: every packet passes.
 *
 * A client's requests are read as they leave the client, its answers as they leave the server. So each stream is read by
 * its sender, under the sender's socket lock: in order, one packet at a time, and what is sent again is known by its
 * sequence number. The two sides meet in a ring of requests in flight: the client's side adds, the server's side takes.
 *
 * Bytes go through an automaton (http_layout.py) that understands message framing and nothing else: request lines and
 * status lines are found where messages begin, wherever packets begin, and never inside of bodies. What it does not
 * understand ends the reading of that connection, and is counted as unknown; nothing is guessed.
 *
 * One run of the program takes HTTP_STEPS steps, or ends an answer; a packet that needs more goes on in a tail call, of
 * which the kernel grants 33. All that a step changes is kept in the map's memory, for the verifier follows values in registers.
 */
#include "maps.h"
#include "http.h"

PINNED("array", u32, struct http_tables, http_tables);
PINNED("hash", u64, struct http_flow, http_flows);
PINNED("hash", u64, struct http_end, http_ends);
PINNED("percpu_hash", struct http_key, struct http_cell, http_requests);
PINNED("prog", u32, u32, http_programs);

#define HTTP_STEPS 64 /* what the verifier looks at, and so the time to load it, grows with this */
#define HTTP_LARGEST (1ull << 50) /* of a length: beyond it is nonsense */
#define EACH_BYTE 0x0101010101010101ull

/* 64 bits even where fewer would do: BPF has no other registers, and narrowing is what the verifier loses track at. */
struct http_segment {
  u64 offset; /* of the payload */
  u64 length;
  u32 sequence;
  u32 fin;
};

static inline struct http_tables *http_table(void) {
  u32 zero = 0;
  return http_tables.lookup(&zero);
}

/* The number of bounds below value, which is the index of its bucket. Without branches: both are below 2^63. */
static inline u32 http_bucket(const u64 *bounds, u64 value) {
  u32 index = 0;
#pragma unroll
  for (int i = 0; i < HTTP_BOUNDS; i++)
    index += (bounds[i] - value) >> 63;
  return index;
}

static inline struct http_cell *http_cell(struct http_tables *tables, struct http_flow *flow, u32 status, u32 outcome) {
  struct http_key key = flow->key;
  key.status = status;
  key.outcome = outcome;
  struct http_cell *cell = http_requests.lookup(&key);
  if (!cell) {
    http_requests.insert(&key, &tables->new_cell);
    cell = http_requests.lookup(&key);
    if (!cell)
      __sync_fetch_and_add(&tables->uncounted, 1);
  }
  return cell;
}

/* Atomic although the cell is this CPU's own: a packet that is sent from an interrupt may come between. */
static inline void http_observe(struct http_tables *tables, struct http_cell *cell, u64 duration, u64 received, u64 sent) {
  __sync_fetch_and_add(&cell->buckets[0][http_bucket(tables->bounds[0], duration)], 1);
  __sync_fetch_and_add(&cell->buckets[1][http_bucket(tables->bounds[1], received)], 1);
  __sync_fetch_and_add(&cell->buckets[2][http_bucket(tables->bounds[1], sent)], 1);
  __sync_fetch_and_add(&cell->sums[0], duration);
  __sync_fetch_and_add(&cell->sums[1], received);
  __sync_fetch_and_add(&cell->sums[2], sent);
}

static inline void http_unknown(struct http_tables *tables, struct http_flow *flow, u32 why, u32 requests) {
  struct http_cell *cell = http_cell(tables, flow, 0, why);
  if (cell)
    __sync_fetch_and_add(&cell->buckets[0][0], requests);
}

/* The connection is no longer understood: what is in flight will not be, and at least one message more. */
static inline void http_give_up(struct http_tables *tables, struct http_flow *flow, u32 why) {
  flow->unreadable = why;
  http_unknown(tables, flow, why, 1 + (flow->sent - flow->answered));
}

/* Where the TCP payload of an outgoing packet is; false when it is none of TCP, or nothing to read. */
static inline bool http_segment(struct __sk_buff *skb, struct http_segment *segment) {
  u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
  if (data + 40 > end)
    return false;
  u32 version = data[0] >> 4, header = version == 4 ? (data[0] & 15) * 4 : 40;
  if ((version == 4 ? data[9] : data[6]) != TCP)
    return false;
  u8 *tcp = data + header;
  if (tcp + 20 > end)
    return false;
  segment->sequence = bpf_ntohl(*(u32 *)(tcp + 4));
  segment->offset = header + (tcp[12] >> 4) * 4;
  segment->length = skb->len - segment->offset;
  segment->fin = tcp[13] & 1;
  return segment->length || segment->fin;
}

static inline void http_next_message(struct http_stream *stream, u64 position) {
  stream->begin = position;
  stream->started = 0;
  stream->length = 0;
  stream->status = 0;
  stream->method = 0;
  stream->has_length = 0;
  stream->chunked = 0;
}

/* What follows a head: RFC 9112, 6.3. */
static inline u32 http_body(struct http_stream *stream, u32 otherwise) {
  if (stream->chunked) {
    stream->length = 0;
    return HTTP_SIZE;
  }
  if (!stream->has_length)
    return otherwise;
  stream->left = stream->length;
  return stream->left ? HTTP_BODY : HTTP_MESSAGE_END;
}

static inline u32 http_request_head(struct http_flow *flow, struct http_stream *stream, u64 position) {
  if (flow->sent - flow->answered >= HTTP_IN_FLIGHT) {
    flow->unreadable = HTTP_TOO_DEEP;
    return HTTP_UNREADABLE;
  }
  struct http_request *request = &flow->requests[flow->sent % HTTP_IN_FLIGHT];
  request->started = stream->started ? stream->started : bpf_ktime_get_ns();
  request->bytes = position - stream->begin + (stream->has_length ? stream->length : 0);
  request->method = stream->method;
  asm volatile("" ::: "memory"); /* the other side must not see the count before the entry */
  flow->sent += 1;
  return http_body(stream, HTTP_MESSAGE_END);
}

static inline u32 http_answer_head(struct http_flow *flow, struct http_stream *stream, u64 position) {
  u32 status = stream->status;
  if (flow->sent == flow->answered) {
    flow->unreadable = HTTP_UNASKED;
    return HTTP_UNREADABLE;
  }
  u64 method = flow->requests[flow->answered % HTTP_IN_FLIGHT].method;
  if (status == 101 || (method == HTTP_METHOD_CONNECT && status / 100 == 2)) {
    flow->tunnel = 1;
    return HTTP_MESSAGE_END;
  }
  if (status < 200) { /* the final answer follows */
    http_next_message(stream, position);
    return HTTP_RESPONSE;
  }
  if (method == HTTP_METHOD_HEAD || status == 204 || status == 304)
    return HTTP_MESSAGE_END;
  u32 state = http_body(stream, HTTP_TO_THE_END);
  if (state == HTTP_TO_THE_END)
    stream->left = ~0ull;
  return state;
}

static inline u32 http_request_end(struct http_flow *flow, struct http_stream *stream, u64 position) {
  if (stream->chunked)
    flow->requests[(flow->sent - 1) % HTTP_IN_FLIGHT].bytes = position - stream->begin;
  http_next_message(stream, position);
  return HTTP_REQUEST;
}

static inline u32 http_answer_end(struct http_tables *tables, struct http_flow *flow, struct http_stream *stream, u64 position) {
  struct http_request request = flow->requests[flow->answered % HTTP_IN_FLIGHT];
  struct http_cell *cell = http_cell(tables, flow, stream->status, HTTP_ANSWERED);
  if (cell)
    http_observe(tables, cell, bpf_ktime_get_ns() - request.started, request.bytes, position - stream->begin);
  asm volatile("" ::: "memory");
  flow->answered += 1;
  stream->left = 0;
  http_next_message(stream, position);
  return HTTP_RESPONSE;
}

/* The effect of entering a state by *byte*; returns the state to go on in. */
static inline u32 http_effect(struct http_stream *stream, u32 state, u32 byte) {
  if (state <= HTTP_METHOD_CONNECT) {
    stream->method = state;
  } else if (state <= HTTP_STATUS_3) {
    stream->status = stream->status * 10 + (byte & 15);
  } else if (state == HTTP_LENGTH || state == HTTP_CHUNKED) { /* one of them, once: otherwise two readers may differ */
    if (stream->has_length || stream->chunked)
      return HTTP_UNREADABLE;
    stream->has_length = state == HTTP_LENGTH;
    stream->chunked = state == HTTP_CHUNKED;
  } else if (state == HTTP_LENGTH_DIGIT) {
    stream->length = stream->length * 10 + (byte & 15);
  } else if (state == HTTP_SIZE_DIGIT) {
    stream->length = stream->length * 16 + (byte & 15) + (byte >> 6) * 9;
  } else if (state == HTTP_SIZE_END) {
    stream->left = stream->length;
    stream->length = 0;
    return stream->left ? HTTP_DATA_END : HTTP_TRAILER;
  }
  return stream->length > HTTP_LARGEST ? HTTP_UNREADABLE : state;
}

/* How many bytes before the next line feed, eight at most (Lamport's zero byte test on word ^ "\n\n\n\n\n\n\n\n"). */
static inline u64 http_before_line_feed(const u8 *bytes) {
  u64 word = *(const u64 *)bytes;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  word ^= '\n' * EACH_BYTE;
  u64 found = (word - EACH_BYTE) & ~word & (0x80 * EACH_BYTE);
  if (!found)
    return 8;
  return (((found & -found) >> 7) * 0x0001020304050607ull) >> 56;
}

#define AGAIN(variable) (*(volatile typeof(variable) *)&(variable)) /* the verifier forgets what it knew */

#define ALONE(variable) asm volatile("" : "+r"(variable))

/* Take up to HTTP_STEPS steps from payload offset *at* on, and none after the end of an answer; return the offset reached. */
static inline u64 http_read(struct __sk_buff *skb, const struct http_segment *segment, u64 at, u32 role, struct http_tables *tables,
                            struct http_flow *flow, struct http_stream *stream) {
  u64 origin = stream->position - at;
  AGAIN(stream->base) = 0;
  AGAIN(stream->filled) = 0;
  for (int step = 0; step < HTTP_STEPS; step++) {
    AGAIN(stream->at) = at;
    at = AGAIN(stream->at);
    u64 base = AGAIN(stream->base);
    u32 state = AGAIN(stream->state);
    if (stream->left) {
      u64 here = segment->length - at;
      if (stream->left > here) {
        stream->left -= here;
        return segment->length;
      }
      at += stream->left;
      stream->left = 0;
      if (state != HTTP_BODY)
        continue;
      state = HTTP_MESSAGE_END;
    } else {
      if (at >= segment->length)
        return at;
      if (at - base >= AGAIN(stream->filled)) {
        base = at;
        AGAIN(stream->base) = base;
        u64 rest = segment->length - at;
        AGAIN(stream->filled) = rest < HTTP_BUFFER ? rest : HTTP_BUFFER;
        u64 last = AGAIN(stream->filled) - 1; /* above every bound where nothing is to be read */
        if (last >= HTTP_BUFFER)
          return at;
        ALONE(last); /* Linux 6.1's verifier learns nothing from a comparison with 0: so the size is 1 at least */
        if (bpf_skb_load_bytes(skb, segment->offset + base, stream->buffer, last + 1))
          return at;
      }
      AGAIN(stream->cursor) = at - base;
      u64 cursor = AGAIN(stream->cursor);
      if (cursor >= HTTP_BUFFER)
        return at;
      if (state == HTTP_SKIP_LINE) {
        u64 before = http_before_line_feed(&stream->buffer[cursor]);
        if (before) {
          u64 end = base + stream->filled;
          at = at + before < end ? at + before : end;
          continue;
        }
      }
      u32 byte = stream->buffer[cursor];
      state = tables->next[state % HTTP_STATES][byte];
      at += 1;
      if (state < HTTP_HEAD_END || state == HTTP_SIZE_DIGIT || state == HTTP_SIZE_END)
        state = state == HTTP_UNREADABLE ? state : http_effect(stream, state, byte);
      else if (state == HTTP_HEAD_END)
        state = role == HTTP_CLIENT ? http_request_head(flow, stream, origin + at) : http_answer_head(flow, stream, origin + at);
    }
    if (state == HTTP_MESSAGE_END && role == HTTP_CLIENT)
      state = http_request_end(flow, stream, origin + at);
    stream->state = state;
    if (state == HTTP_UNREADABLE || state == HTTP_MESSAGE_END)
      return at;
  }
  return at;
}

/* Whether the payload begins with a method: all that is still asked of a connection that is not understood. */
static inline bool http_like_request(struct __sk_buff *skb, const struct http_segment *segment) {
  char word[4];
  if (segment->length < sizeof(word) || bpf_skb_load_bytes(skb, segment->offset, word, sizeof(word)))
    return false;
#define STARTS(a, b, c, d) (word[0] == a && word[1] == b && word[2] == c && word[3] == d)
  return STARTS('G', 'E', 'T', ' ') || STARTS('P', 'O', 'S', 'T') || STARTS('H', 'E', 'A', 'D') || STARTS('P', 'U', 'T', ' ') ||
         STARTS('D', 'E', 'L', 'E') || STARTS('P', 'A', 'T', 'C') || STARTS('O', 'P', 'T', 'I') || STARTS('C', 'O', 'N', 'N') ||
         STARTS('T', 'R', 'A', 'C');
#undef STARTS
}

enum http_progress { HTTP_DONE, HTTP_MORE };

static inline int http_packet(struct __sk_buff *skb, const struct http_segment *segment, struct http_tables *tables, struct http_flow *flow, u32 role) {
  struct http_stream *stream = &flow->streams[role & 1];
  u32 skipped = stream->next - segment->sequence; /* what was read already */
  u64 at = skipped;
  if (flow->tunnel)
    return HTTP_DONE;
  if ((s32)(segment->sequence + segment->length - stream->next) < 0 || (at && at == segment->length && !segment->fin))
    return HTTP_DONE; /* sent again */
  if (flow->unreadable) {
    stream->next = segment->sequence + segment->length;
    if (role == HTTP_CLIENT && http_like_request(skb, segment))
      http_unknown(tables, flow, flow->unreadable, 1);
    return HTTP_DONE;
  }
  if ((s32)skipped < 0) {
    http_give_up(tables, flow, HTTP_MISSED_BYTES);
    stream->next = segment->sequence + segment->length;
    return HTTP_DONE;
  }
  u64 reached = at < segment->length ? http_read(skb, segment, at, role, tables, flow, stream) : at;
  stream->position += reached - at;
  stream->next = segment->sequence + reached;
  if (segment->fin && role == HTTP_CLIENT)
    flow->client_ended = 1;
  if (stream->state == HTTP_MESSAGE_END || (segment->fin && stream->state == HTTP_TO_THE_END && reached == segment->length))
    stream->state = http_answer_end(tables, flow, stream, stream->position);
  if (flow->tunnel)
    return HTTP_DONE;
  if (stream->state == HTTP_UNREADABLE) {
    http_give_up(tables, flow, flow->unreadable ? flow->unreadable : HTTP_NOT_HTTP);
    return HTTP_DONE;
  }
  if (reached < segment->length)
    return HTTP_MORE;
  if (!stream->started && stream->position != stream->begin)
    stream->started = bpf_ktime_get_ns();
  return HTTP_DONE;
}

int http_egress(struct __sk_buff *skb) {
  struct http_segment segment;
  if (!http_segment(skb, &segment))
    return 1;
  u64 cookie = bpf_get_socket_cookie(skb);
  struct http_end *end = http_ends.lookup(&cookie);
  if (!end)
    return 1;
  u64 id = end->flow;
  u32 role = end->role;
  struct http_tables *tables = http_table();
  struct http_flow *flow = http_flows.lookup(&id);
  if (!tables || !flow)
    return 1;
  if (http_packet(skb, &segment, tables, flow, role) == HTTP_MORE) {
    http_programs.call(skb, 0);
    http_give_up(tables, flow, HTTP_TOO_LONG);
  }
  return 1;
}

/* For sockops, when a kernel-path connection of an HTTP port is established: the client's side first, then the server's. */
static inline void http_begin(struct bpf_sock_ops *ctx, u64 cookie, u64 client_cookie, u32 role, const struct http_key *key) {
  struct http_tables *tables = http_table();
  struct http_end end = {.flow = client_cookie, .role = role};
  if (!tables)
    return;
  if (role == HTTP_CLIENT)
    http_flows.update(&client_cookie, &tables->new_flow);
  struct http_flow *flow = http_flows.lookup(&client_cookie);
  if (!flow || http_ends.update(&cookie, &end)) {
    __sync_fetch_and_add(&tables->uncounted, 1);
    return;
  }
  if (role == HTTP_CLIENT)
    flow->key = *key;
  else
    flow->server_joined = 1;
  flow->streams[role & 1].next = ctx->snd_nxt;
}

/* For sockops, when either socket has closed: the server's side settles what is still unanswered. */
static inline void http_finish(u64 cookie) {
  struct http_end *end = http_ends.lookup(&cookie);
  if (!end)
    return;
  u64 id = end->flow;
  u32 role = end->role;
  http_ends.delete(&cookie);
  struct http_tables *tables = http_table();
  struct http_flow *flow = http_flows.lookup(&id);
  if (!tables || !flow)
    return;
  if (role == HTTP_CLIENT) {
    flow->client_ended = 1;
    if (!flow->server_joined)
      http_flows.delete(&id);
    return;
  }
  if (flow->sent != flow->answered && !flow->unreadable) {
    u32 outcome = flow->client_ended ? HTTP_CLIENT_LEFT : HTTP_SERVER_LEFT;
    struct http_cell *cell = http_cell(tables, flow, 0, outcome);
    for (int i = 0; cell && i < HTTP_IN_FLIGHT && flow->answered != flow->sent; i++) {
      struct http_request *request = &flow->requests[flow->answered % HTTP_IN_FLIGHT];
      http_observe(tables, cell, bpf_ktime_get_ns() - request->started, request->bytes, 0);
      flow->answered += 1;
    }
  }
  http_flows.delete(&id);
}
