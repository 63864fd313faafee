/* What bypass.c and the daemon share; mirrored by nodeagent/redirect/bypass_layout.py (tests/bpf/test_layout.py compares). */
#ifndef NODEAGENT_BYPASS_H
#define NODEAGENT_BYPASS_H

#include "nodeagent.h"

enum bypass_way { BYPASS_UNDECIDED, BYPASS_SOCKET, BYPASS_TCP };

/* One socket of a connection, as it sees itself. bypass_sockets: struct bypass_side -> socket */
struct bypass_side {
  __u64 netns; /* its cookie where both ends have one address, which says nothing outside of it; otherwise 0 */
  struct address local;
  struct address remote;
  __u32 local_port;
  __u32 remote_port;
};

/* bypass_streams: struct bypass_side -> what that socket sends; written under its lock */
struct bypass_stream {
  __u64 bytes; /* that went past TCP */
  __u64 messages;
  __u32 way;
  __u32 joined; /* 1: the socket is in the sockhash */
  __u64 socket; /* the kernel's struct sock */
  __u32 written; /* its write_seq when it was joined: past TCP nothing is added to it */
  __u32 reserved;
};

#endif
