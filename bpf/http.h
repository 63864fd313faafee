/* What http.c and the daemon share; mirrored by nodeagent/redirect/http_layout.py (tests/bpf/test_layout.py compares).
 *
 * Plain C and UAPI types only. Padding is named and zero: keys are hashed byte for byte.
 */
#ifndef NODEAGENT_HTTP_H
#define NODEAGENT_HTTP_H

#include <linux/types.h>

/* States of the automaton that C knows by name; the others are numbered by http_layout.py, which writes the table. */
enum http_state {
  HTTP_UNREADABLE, /* not HTTP/1, or its end cannot be known for certain */
  /* Entering one of these has an effect. */
  HTTP_METHOD_HEAD,
  HTTP_METHOD_CONNECT,
  HTTP_STATUS_1,
  HTTP_STATUS_2,
  HTTP_STATUS_3,
  HTTP_LENGTH,
  HTTP_LENGTH_DIGIT,
  HTTP_CHUNKED,
  HTTP_HEAD_END,
  HTTP_SIZE_DIGIT,
  HTTP_SIZE_END,
  HTTP_MESSAGE_END,
  /* From here on it has none. */
  HTTP_SKIP_LINE, /* up to the end of a line that says nothing about the message's length */
  HTTP_REQUEST,   /* before the first byte of a request */
  HTTP_RESPONSE,  /* before the first byte of an answer */
  HTTP_SIZE,      /* before the first digit of a chunk's size */
  HTTP_DATA_END,  /* after a chunk's data */
  HTTP_TRAILER,   /* at the start of a trailer's line */
  HTTP_BODY,      /* not in the table: within a body of known length */
  HTTP_TO_THE_END, /* not in the table: within a body that ends with the connection */
  HTTP_NAMED_STATES
};

enum http_outcome {
  HTTP_ANSWERED,
  HTTP_CLIENT_LEFT,  /* the connection ended before the answer did, by the client's side */
  HTTP_SERVER_LEFT,  /* by the server's side */
  HTTP_NOT_HTTP,     /* from here on: requests, at least, that could not be followed; why */
  HTTP_MISSED_BYTES, /* bytes of the stream did not come by (the program was not attached, IPv6 extension headers) */
  HTTP_TOO_DEEP,     /* more than HTTP_IN_FLIGHT requests unanswered */
  HTTP_TOO_LONG,     /* one packet needs more steps than the kernel grants */
  HTTP_UNASKED,      /* an answer without a request */
  HTTP_OUTCOMES
};

#define HTTP_STATES 128
#define HTTP_BOUNDS 19   /* of istio_* histograms */
#define HTTP_IN_FLIGHT 32
#define HTTP_BUFFER 320  /* bytes of a packet that are looked at in one go */

/* What requests are counted by. Pods and services are numbers that control gives. */
struct http_key {
  __u32 source;
  __u32 destination;
  __u32 service;
  __u16 port;
  __u16 status; /* 0 unless answered */
  __u32 outcome;
};

/* http_requests: struct http_key -> one per CPU. Histograms: duration in ns, request bytes, response bytes. */
struct http_cell {
  __u64 buckets[3][HTTP_BOUNDS + 1];
  __u64 sums[3];
};

struct http_request {
  __u64 started; /* monotonic ns */
  __u64 bytes;
  __u64 method; /* HTTP_METHOD_HEAD, HTTP_METHOD_CONNECT or 0 */
};

/* One direction of a connection. Only that direction's sender writes it, under its socket's lock. */
struct http_stream {
  __u64 left;     /* bytes of a body or chunk still to pass over */
  __u64 length;   /* the number that is being read, or was */
  __u64 started;  /* monotonic ns when the message that is being read began, 0: not known yet */
  __u64 position; /* bytes of the stream read so far */
  __u64 begin;    /* position at which the message began */
  __u64 at;       /* where the program is: in the payload, */
  __u64 base;     /* the buffer in the payload, */
  __u64 cursor;   /* in the buffer; */
  __u64 filled;   /* how much of the buffer is in use */
  __u32 next;     /* sequence number of the byte at position */
  __u32 status;
  __u8 state;
  __u8 method;
  __u8 has_length;
  __u8 chunked;
  __u32 reserved;
  __u8 buffer[HTTP_BUFFER + 8]; /* eight bytes are looked at together */
};

/* http_flows: the client's socket cookie -> struct http_flow */
struct http_flow {
  struct http_key key;
  __u32 unreadable; /* enum http_outcome, 0: everything was understood so far */
  __u32 tunnel;     /* 1: HTTP has ended (101, CONNECT) */
  __u32 client_ended;
  __u32 server_joined;
  __u32 sent;     /* requests, counted by the client's side */
  __u32 answered; /* and by the server's side */
  __u32 reserved;
  struct http_request requests[HTTP_IN_FLIGHT];
  struct http_stream streams[2]; /* by enum http_role */
};

enum http_role { HTTP_CLIENT = 0, HTTP_SERVER = 1 };

/* http_ends: socket cookie -> struct http_end */
struct http_end {
  __u64 flow;
  __u32 role;
  __u32 reserved;
};

/* http_tables: 0 -> struct http_tables, written by the loader */
struct http_tables {
  __u8 next[HTTP_STATES][256];
  __u64 bounds[2][HTTP_BOUNDS]; /* inclusive upper bounds in ns and in bytes */
  struct http_flow new_flow;
  struct http_cell new_cell;
  __u64 uncounted; /* requests and connections for which a map had no room */
};

#endif
