#ifndef NODEAGENT_STUB_IF_PACKET_H
#define NODEAGENT_STUB_IF_PACKET_H
#include_next <linux/if_packet.h>
#endif
