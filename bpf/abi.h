/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Every byte that programs and controller share. src/abi/layout.gen.ts is generated from the BTF of
 * this file, and its hash is part of the pin path: a change here makes new tables.
 *
 * Byte order: __be16/__be32 and addresses are network order, everything else host order.
 * Times: a tick is 2^TICK_SHIFT ns of CLOCK_MONOTONIC.
 */
#ifndef LASTHOP_ABI_H
#define LASTHOP_ABI_H

#include <linux/types.h>

#define ABI_VERSION 1
#define TICK_SHIFT  28 /* 0.268 s; 32 bits of it last 36 years */

#define LAST_HOP_INDEX_BITS 20
#define LAST_HOP_INDEX_MASK ((1U << LAST_HOP_INDEX_BITS) - 1)
/* Index parts of an alias that name no record: the device is down. */
#define LAST_HOP_ROUTE LAST_HOP_INDEX_MASK	 /* pass to the VM's own choice */
#define LAST_HOP_DROP  (LAST_HOP_INDEX_MASK - 1) /* drop, asked for by the operator */

#define FLOWS_MAX	 1048576
#define EMBRYOS_MAX	 65536
#define LAST_HOPS_MAX	 65536
#define INTERFACES_MAX	 1024
#define TUNNELS_MAX	 1024
#define LABEL_STACKS_MAX 1024
#define VMS_MAX		 16384
#define FRAGMENTS_MAX	 16384
#define TRACES_MAX	 64
#define DEVICES_MAX	 1024
#define ZONES_MAX	 1024 /* that are counted each by itself */
#define EVENTS_BYTES	 (1 << 20)
#define NOTICES_BYTES	 (1 << 16)
#define LAYOUT_BYTES	 65532
#define NAME_BYTES	 32 /* with the NUL */

#define LABELS_MAX 4 /* entries of an MPLS label stack */

#define VM_SPECS_MAX	   4096
#define VM_SPEC_BYTES	   2016
#define SERVICES_MAX	   16384
#define SERVICE_KEYS_MAX   98304 /* a service of any protocol has five */
#define SERVICE_SPEC_BYTES 8176
#define POOLS_MAX	   32768
#define POOL_LINES_MAX	   131072
#define POOL_LINE_CELLS	   32
#define ASSOCIATIONS_MAX   65536
#define AFFINITIES_MAX	   65536
#define VM_CELL_TRIES	   4

#define EXCLUSIONS_MAX	     16
#define DEVICE_MACS_MAX	     8
#define DEVICE_ADDRESSES_MAX 4
#define DEVICE_VTEPS_MAX     4
#define NOTICES_PER_TICK     16

enum role {
	ROLE_NONE,
	ROLE_UPLINK, /* towards devices */
	ROLE_TAP,    /* towards a VM */
	ROLE_BRIDGE, /* not attached: the bridge of attached taps, as a routed host's lookup names
			it */
};

enum policy {
	POLICY_ENFORCE,
	POLICY_OBSERVE, /* count what would change, change nothing */
	POLICY_OFF,	/* the guest does its own per-connection routing */
};

enum hook {
	HOOK_NONE,
	HOOK_XDP_NATIVE,
	HOOK_XDP_GENERIC,
	HOOK_TCX,
	HOOK_CLSACT,
};

enum interface_flag {
	INTERFACE_PORT_BLOCKED = 1 << 0,  /* bridge port that does not forward: learns nothing */
	INTERFACE_LEARN_DEVICES = 1 << 1, /* only last hops that the controller made */
	INTERFACE_RELEARN_NEVER = 1 << 2,
	INTERFACE_PICKUP_NO = 1 << 3,  /* no flow from the middle of a connection */
	INTERFACE_QDISC_OURS = 1 << 4, /* clsact was not there before us: detach removes it */
	INTERFACE_EXCLUDES = 1 << 5,   /* exclusions has rules for it */
	INTERFACE_GONE = 1 << 6, /* its netdev went; kept for its last hops, until it returns */
	INTERFACE_NO_LINK_LAYER = 1 << 7, /* its packets begin with the IP header */
	INTERFACE_TUNNEL_KEY = 1 << 8,	  /* shared tunnel device: a tunnel key with each packet */
	INTERFACE_LOWER = 1 << 9,	  /* what is beneath it is attached too, and comes first */
	INTERFACE_CLAMP_MSS = 1 << 10,	  /* of the SYN and SYN-ACK of what is learned here */
	INTERFACE_VIA_STACK = 1 << 11,	  /* replies go through the host's routing, with its mark */
	INTERFACE_XFRM_ID = 1 << 12, /* shared XFRM interface: an interface id with each packet */
};

/* A flow's life. TCP walks through all of them, the others through NEW, REPLIED, ESTABLISHED. */
enum flow_state {
	FLOW_NEW,	  /* a request was seen */
	FLOW_SYN,	  /* TCP SYN, SCTP INIT */
	FLOW_SYN_ACK,	  /* the VM answered it */
	FLOW_REPLIED,	  /* the VM replied, no further request yet */
	FLOW_ESTABLISHED, /* both directions proven */
	FLOW_HALF_CLOSED, /* one FIN seen */
	FLOW_CLOSED,	  /* both FINs, an RST, an ABORT */
	FLOW_PROVISIONAL, /* local origin by UDP: short-lived, never renewed once answered */
	FLOW_STATES,
};

enum flow_flag {
	FLOW_LOCAL_ORIGIN = 1 << 0, /* the VM opened it: its own route stands */
	FLOW_PICKUP = 1 << 1,	    /* learned in the middle of a connection */
	FLOW_FIN_REMOTE = 1 << 2,
	FLOW_FIN_LOCAL = 1 << 3,
	FLOW_ANSWERED =
		1 << 4,	       /* of local origin: the remote side answered; of a service: the VM */
	FLOW_SERVICE = 1 << 5, /* a service chose the VM: its requests are handed to it */
	FLOW_TRANSPARENT = 1 << 6, /* local origin, perhaps with another's address: answers are
				      handed to the VM */
};

enum timeout {
	TIMEOUT_SYN,
	TIMEOUT_TCP,
	TIMEOUT_CLOSED,
	TIMEOUT_UDP,
	TIMEOUT_UDP_PROVISIONAL,
	TIMEOUT_ICMP,
	TIMEOUT_SCTP,
	TIMEOUTS,
};

enum last_hop_kind {
	LAST_HOP_NONE,
	LAST_HOP_ETHERNET,
	LAST_HOP_IP,	/* an interface without a link layer: no MAC */
	LAST_HOP_STACK, /* the host's own routing sends the reply, by its mark */
};

/* What a request came in, beside its frame. */
enum encapsulation_flag {
	ENCAPSULATION_TUNNEL = 1 << 0, /* the tunnel key of a shared device */
	ENCAPSULATION_LABELS = 1 << 1, /* an MPLS label stack */
	ENCAPSULATION_IPSEC = 1 << 2,  /* an IPsec policy without an interface of its own */
	ENCAPSULATION_XFRM = 1 << 3,   /* beside TUNNEL: the id is that of an XFRM interface */
};

enum origin {
	ORIGIN_LEARNED, /* by the hot path */
	ORIGIN_MANUAL,
	ORIGIN_CONFIG,
};

/* What the replies of a device's flows do while it is down. */
enum on_down {
	ON_DOWN_ROUTE, /* the VM's own choice */
	ON_DOWN_HOLD,  /* to the remembered MAC, as before */
	ON_DOWN_PEER,  /* to another device */
	ON_DOWN_DROP,
};

enum device_state {
	DEVICE_UNKNOWN,
	DEVICE_UP,
	DEVICE_DOWN,
};

/* Why a device is in its state. */
enum cause {
	CAUSE_NONE,
	CAUSE_OPERATOR,
	CAUSE_INTERFACE,
	CAUSE_NEIGHBOUR,
	CAUSE_PROBE,
};

enum probe_kind {
	PROBE_NONE,
	PROBE_ICMP,
	PROBE_TCP,
};

/* How a service chooses the VM of a new flow. */
enum service_policy {
	SERVICE_MAGLEV, /* by the flow's addresses and ports; Eisenbud et al., NSDI 2016 */
	SERVICE_ROUND_ROBIN,
	SERVICE_LEAST_FLOWS,
	SERVICE_SOURCE_HASH, /* by the client's address */
};

/* What becomes of a service's flows whose VM is down. */
enum on_vm_down {
	ON_VM_DOWN_REBALANCE, /* another VM is chosen */
	ON_VM_DOWN_RESET,     /* TCP is reset, others get another VM */
	ON_VM_DOWN_HOLD,      /* they wait for the VM */
};

enum service_flag {
	SERVICE_ASSOCIATED = 1 << 0, /* associations has entries for it */
	SERVICE_ANSWERED = 1 << 1,   /* we answer ARP and ND for its addresses */
};

enum vm_state {
	VM_UNKNOWN,
	VM_UP,
	VM_DRAIN, /* keeps its flows, gets no new ones */
	VM_DOWN,
};

enum vm_flag {
	VM_XDP = 1 << 0, /* its tap takes frames from native XDP */
};

/* Why a packet left a program as it did. Each packet counts once. */
enum reason {
	/* either hook: pass */
	REASON_BYPASS,
	REASON_NOT_ATTACHED,
	REASON_NOT_IP,
	REASON_MALFORMED,
	REASON_VLAN_DEPTH,
	REASON_EXTENSION_HEADERS,
	REASON_PROTOCOL,
	REASON_MULTICAST,
	REASON_FRAGMENT,
	REASON_EXCLUDED,
	REASON_ERROR,
	/* uplink: pass, after */
	REASON_LEARN,
	REASON_REFRESH,
	REASON_RELEARN,
	REASON_PROMOTE,
	REASON_RESTART,
	REASON_ANSWER,
	REASON_QUOTED,
	/* uplink: pass, nothing learned because */
	REASON_NOT_REQUEST,
	REASON_NOT_FOR_VM,
	REASON_FOR_HOST,
	REASON_SOURCE_MAC,
	REASON_SOURCE_VM,
	REASON_PORT_BLOCKED,
	REASON_OTHER_VM,
	REASON_RELEARN_OFF,
	REASON_RELEARN_DAMPED,
	REASON_PICKUP_OFF,
	REASON_UNKNOWN_DEVICE,
	REASON_LAST_HOP_BUDGET,
	/* tap: redirect or drop */
	REASON_REDIRECT,
	REASON_DEVICE_DROP,
	/* tap: pass because */
	REASON_OFF,
	REASON_NO_FLOW,
	REASON_LOCAL_ORIGIN,
	REASON_OBSERVE_CHANGE,
	REASON_OBSERVE_SAME,
	REASON_VM_MISMATCH,
	REASON_VM_BUDGET,
	REASON_STALE_LAST_HOP,
	REASON_DEVICE_DOWN,
	REASON_INTERFACE_GONE,
	REASON_TTL,
	REASON_HAIRPIN,
	/* later additions, at the end: tables of other versions keep their numbers */
	REASON_LABEL_DEPTH,    /* either hook: pass */
	REASON_LEARNED_BELOW,  /* uplink: pass */
	REASON_UNKNOWN_LABELS, /* uplink: pass, nothing learned */
	REASON_STACK,	       /* tap: passed to the host's stack, marked */
	REASON_TOO_BIG,	       /* tap: answered with an ICMP error */
	REASON_DELIVER,	       /* uplink: redirected to the flow's VM */
	REASON_DELIVER_HOOK,   /* uplink: pass, the VM's tap cannot be reached from this hook */
	REASON_SERVICE_EMPTY,  /* uplink: drop */
	REASON_VM_HELD,	       /* uplink: drop */
	REASON_VM_RESET,       /* uplink: answered with a TCP reset */
	REASON_ADDRESS_ANSWER, /* uplink: ARP or ND answered */
	REASONS,
};

enum verdict {
	VERDICT_PASS,
	VERDICT_REDIRECT,
	VERDICT_DROP,
	VERDICT_STACK,	/* pass, addressed to the host and marked */
	VERDICT_ANSWER, /* turned into an answer to its sender */
};

/* flows4, embryos4: role-normalised, local is the VM's side. ICMP echo has the identifier as the
 * opener's port and 0 as the other. */
struct flow4_key {
	__be32 local;
	__be32 remote;
	__be16 local_port;
	__be16 remote_port;
	__u16 zone;
	__u8 proto;
	__u8 reserved;
};

/* flows6, embryos6 */
struct flow6_key {
	__u8 local[16];
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u16 zone;
	__u8 proto;
	__u8 reserved;
};

struct flow {
	__u32 last_hop;	 /* generation << LAST_HOP_INDEX_BITS | index; 0 for local origin */
	__u32 last_seen; /* ticks */
	__u32 vm;	 /* id of the VM that the service chose or that replied first, 0 before */
	__u8 state;	 /* enum flow_state */
	__u8 flags;	 /* enum flow_flag */
	__u16 moved;	 /* low bits of the tick when another last hop took over, 0 for never */
};

struct embryo {
	struct flow flow;
	__u32 vm_isn;  /* initial sequence number of the VM's SYN-ACK */
	__u32 vm_next; /* what follows the last sequence number that the VM sent */
};

struct vlan_tag {
	__be16 proto; /* ETH_P_8021Q or ETH_P_8021AD; 0 for none */
	__u16 vid;    /* 12 bits: priority may change from packet to packet */
};

/* The outer header of a request that a shared tunnel device took off, as the reply needs it. */
struct tunnel_key {
	__u8 remote[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 local[16];
	__u32 id;     /* VNI, GRE key, interface id of XFRM */
	__be16 flags; /* TUNNEL_* of the kernel: which fields the header has */
	__u8 tos;     /* DSCP, without ECN */
	__u8 reserved;
};

/* scratch[0]: what is known of the packet at hand if its encapsulation flags say so */
struct encapsulation {
	struct tunnel_key tunnel;
	__u32 labels[LABELS_MAX]; /* 20 bits each, outer first, then 0 */
};

/* last_hops: index -> record, immutable once its alias names it. The first 64 bytes are all that
 * most replies need. */
struct last_hop {
	__u8 kind;	  /* enum last_hop_kind */
	__u8 origin;	  /* enum origin */
	__u16 generation; /* 12 bits, never 0 once used */
	__u32 ifindex;
	__u32 slot;		 /* of the interface */
	__u8 mac[6];		 /* the reply's destination */
	__u8 source_mac[6];	 /* the reply's source when the host routes */
	struct vlan_tag tags[2]; /* outer first */
	__u32 created;		 /* ticks */
	__u32 mark;		 /* of LAST_HOP_STACK */
	__u8 encapsulated;	 /* enum encapsulation_flag */
	__u8 label_count;
	__u16 reserved;
	/* For the controller, which may change these two while the record is in use. */
	__u32 successor; /* reference of the record that took this one's place, 0 for none */
	__u8 owner[8];	 /* of which device it is, 0 for none */
	struct encapsulation encapsulation;
	__u8 reserved2[16];
};

/* last_hop_index: what a frame shows -> index */
struct last_hop_key {
	__u32 ifindex;
	__u8 mac[6];	   /* 0 without a link layer */
	__u8 encapsulated; /* enum encapsulation_flag */
	__u8 reserved;
	struct vlan_tag tags[2];
	__u8 tunnel_remote[16];
	__u32 tunnel_id;
	__u32 labels[LABELS_MAX];
};

/* last_hop_stats: per CPU, by index. A GSO frame counts once. */
struct last_hop_stats {
	__u64 request_packets;
	__u64 request_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u32 last_seen; /* ticks */
	__u32 relearns;	 /* flows that came here from another last hop */
};

/* verdicts: per CPU, slot * REASONS + reason */
struct verdict_count {
	__u64 packets;
	__u64 bytes;
};

#define NEAR_INTERFACES 4096 /* a power of two */

/*
 * interfaces: ifindex -> and near_interfaces: ifindex % NEAR_INTERFACES ->. An array costs 2 ns and
 * a hash 29, so the hot path looks in the array first; of two interfaces that meet in a cell one is
 * found only in the hash.
 */
struct interface {
	__u32 slot; /* 1..INTERFACES_MAX-1: row of verdicts, cell of egress_devices and budgets */
	__u32 l3_ifindex; /* where the host's IP stack sees its packets: the bridge, or itself */
	__u16 zone;
	__u8 role;
	__u8 policy;
	__u16 flags; /* enum interface_flag */
	__u8 hook;
	__u8 origin;	  /* enum origin: who attached it */
	__u8 mac[6];	  /* its own */
	__u8 host_mac[6]; /* of l3_ifindex */
	char name[16];	  /* as last seen */
	__u32 prog_id;
	__u32 ifindex;	    /* tells in near_interfaces whose cell it is */
	__u16 config_index; /* of ORIGIN_CONFIG: its place among the file's uplinks or taps */
	__u16 mtu_chosen;   /* mtu is what the operator asked for, not the netdev's own */
	__u32 mtu;	    /* of what leaves by it, from the IP header on; 0 for unknown */
	__u32 mark;	    /* of the replies that go through the host's routing */
	/* With INTERFACE_LOWER: the netdev beneath it, and the tag that tells them apart there. */
	__u32 lower_ifindex;
	struct vlan_tag lower_tag;
	/* Source of ICMP errors to a VM; 0: the address that the VM sent to. */
	__be32 icmp_source4;
	__u8 icmp_source6[16];
};

/* budgets: slot -> what the hot path may still create on its own */
struct budget {
	__u32 last_hops;
	__u32 last_hops_max;
	__u32 vms;
	__u32 vms_max;
};

struct vm_key {
	__u16 zone;
	__u8 mac[6];
};

struct vm {
	__u32 id;	 /* never reused while the tables live */
	__u32 ifindex;	 /* its tap */
	__u32 last_seen; /* ticks; of a tap's usual VM the cell in taps knows it better */
	__u8 origin;	 /* enum origin */
	__u8 reserved[3];
};

/* taps: slot -> the VM that was first seen on it, so that its frames need not look in vms. Whole
 * once vm is set, and never rewritten while vm is set. */
struct tap {
	__u8 mac[6];
	__u16 reserved;
	__u32 claimed;
	__u32 vm;	 /* its id */
	__u32 last_seen; /* ticks */
};

/*
 * vm_cells: cell -> a VM that requests and answers are handed to. It stands in one of the cells
 * id % VMS_MAX and the VM_CELL_TRIES - 1 that follow. Of a cell in use id and mac stay as they are,
 * all else changes word by word.
 */
struct vm_cell {
	__u32 id;      /* 0: free */
	__u32 ifindex; /* its tap, 0 for none */
	__u32 slot;    /* of the tap */
	__u8 mac[6];
	__u8 state;	 /* enum vm_state */
	__u8 flags;	 /* enum vm_flag */
	__u32 responses; /* id of the VM that gets the responses to what this one forwards; 0:
			    itself */
};

/* vm_stats: per CPU, by cell. A GSO frame counts once. */
struct vm_stats {
	__u64 flows; /* of services, handed to it */
	__u64 request_packets;
	__u64 request_bytes;
	__u64 response_packets; /* to what it forwarded */
	__u64 response_bytes;
	__u32 last_seen; /* ticks */
	__u32 reserved;
};

/* vm_specs: name -> a VM of the operator's. For the controller only. */
struct vm_name {
	char name[NAME_BYTES];
};

struct vm_spec {
	__u32 id;      /* 0 until its MAC is known */
	__u32 ifindex; /* its tap, 0 for none */
	__u32 changed; /* ticks, when state did */
	__u8 mac[6];   /* 0 until it is known */
	__u16 zone;
	__u8 origin;	     /* enum origin */
	__u8 state;	     /* enum vm_state */
	__u8 cause;	     /* enum cause */
	__u8 operator_state; /* the operator's word: VM_DRAIN, VM_DOWN, or VM_UNKNOWN for none */
	__u8 health;	     /* what checks found: VM_UP, VM_DOWN, or VM_UNKNOWN */
	__u8 reserved;
	__u16 bytes;		  /* of the text */
	__u8 text[VM_SPEC_BYTES]; /* as in the configuration file, as JSON: lists of any length */
};

/* service_specs: name -> a service of the operator's. For the controller only. */
struct service_name {
	char name[NAME_BYTES];
};

struct service_spec {
	__u32 index; /* in services */
	__u16 zone;
	__u8 origin; /* enum origin */
	__u8 reserved;
	__u32 bytes; /* of the text */
	__u8 reserved2[4];
	__u8 text[SERVICE_SPEC_BYTES]; /* as in the configuration file, as JSON */
};

/* Not IP protocols: who answers ARP and ND for an address. */
#define SERVICE_PROTO_ANSWER 255
#define SERVICE_KEY_BITS     64 /* of what stands before the address */

/* service_index: longest prefix -> index in services. With the port, then with port 0 for any. */
struct service_key {
	__u32 prefix_bits; /* SERVICE_KEY_BITS and those of the address */
	__u16 zone;
	__u8 proto;
	__u8 reserved;
	__be16 port;
	__u16 reserved2;
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d: an IPv4 prefix has 96 bits more */
};

/* services: index -> , index 0 is nobody's */
struct service {
	__u32 pool;	      /* index in pools, 0 for none */
	__u32 affinity_ticks; /* how long a client stays with its VM, 0 for no such */
	__u8 on_vm_down;      /* enum on_vm_down */
	__u8 flags;	      /* enum service_flag */
	__u8 answer_mac[6];   /* of SERVICE_ANSWERED; 0: the host's, as the uplink has it */
};

/*
 * pools: index -> , immutable once a service or an association names it; index 0 is nobody's. The
 * cells of its VMs stand in pool_lines from `line` on: `size` of them, a VM as often as its share.
 * With SERVICE_LEAST_FLOWS each stands once, and their weights follow.
 */
struct pool {
	__u32 line;
	__u32 size;
	__u8 policy; /* enum service_policy */
	__u8 reserved[3];
};

struct pool_line {
	__u16 cells[POOL_LINE_CELLS];
};

/* service_stats: per CPU, by index of the service */
struct service_stats {
	__u64 flows;
	__u64 associated; /* of these, by a stored association */
	__u64 affine;	  /* of these, by the client's affinity */
	__u64 empty;	  /* requests dropped, as no VM was up */
	__u64 rebalanced; /* flows */
	__u64 reset;	  /* segments answered with a reset */
	__u64 held;	  /* packets dropped */
	__u64 answered;	  /* ARP and ND */
};

/* associations: service and longest prefix of the client -> index in pools */
struct association_key {
	__u32 prefix_bits; /* 32 and those of the address */
	__u32 service;
	__u8 client[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* affinities: client of a service -> its VM */
struct affinity_key {
	__u8 client[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 service;
};

struct affinity {
	__u32 vm;	 /* id */
	__u32 last_seen; /* ticks */
};

/* One kind of flow that is left alone on an interface. */
struct exclusion {
	__u8 remote[16];  /* prefix of the remote address, IPv4 as ::ffff:a.b.c.d */
	__u8 prefix_bits; /* of these 128; an IPv4 prefix has 96 more than people write */
	__u8 proto;	  /* 0 for any */
	__u16 reserved;
	__u16 port_first; /* of the VM's port, host order */
	__u16 port_last;
};

/* exclusions: slot -> */
struct exclusions {
	__u32 count;
	struct exclusion rules[EXCLUSIONS_MAX];
};

struct fragment_key {
	__u8 source[16]; /* IPv4: the first 4 bytes, rest 0 */
	__u8 destination[16];
	__u32 id; /* as in the packet */
	__u16 zone;
	__u8 proto;
	__u8 family; /* 4 or 6 */
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u32 seen; /* ticks */
};

/* control[0]. Only the controller writes it, and whole: what programs count is in allocations. */
struct control {
	__u64 netns_inode;
	__u32 bypass;
	__u32 traces; /* number of keys in traces */
	/* ticks = (jiffies - jiffies_base) * jiffies_mult >> 32: reading the clock costs 20 ns,
	 * jiffies cost 1. While jiffies_mult is 0 the clock is read. */
	__u64 jiffies_base;
	__u32 jiffies_mult;
	__u32 timeouts[TIMEOUTS]; /* ticks */
	__u32 relearn_damping;	  /* ticks that a flow stays after a move; 0 for none */
	__u32 migrating;	  /* what a table lacks may be in the one before it */
	__u32 vm_cells;		  /* VMs in vm_cells: without any there are no services */
	__u32 reserved;
};

/* allocations[0]. Only programs write it. */
struct allocations {
	__u32 last_hops;     /* indices ever used: those above are fresh */
	__u32 vms;	     /* ids given out */
	__u32 trace_lost;    /* events that found the ring full */
	__u32 notices_lost;  /* the same of notices, and those over the rate */
	__u32 notices_tick;  /* when the rate was last counted */
	__u32 notices_count; /* in that tick */
};

/* Answer of read_clock: both at the same moment. */
struct clock {
	__u64 jiffies;
	__u64 time_ns; /* CLOCK_MONOTONIC */
};

enum event_kind {
	EVENT_TRACE,
};

/* events */
struct event {
	__u64 time_ns;	      /* CLOCK_MONOTONIC */
	struct flow6_key key; /* IPv4 addresses as ::ffff:a.b.c.d */
	__u32 trace;	      /* value in traces */
	__u32 ifindex;
	__u32 out_ifindex; /* 0 when passed */
	__u32 last_hop;	   /* the flow's, 0 for none */
	__u32 length_bytes;
	__u8 kind; /* enum event_kind */
	__u8 reason;
	__u8 verdict;
	__u8 role;
	__u8 hook;
	__u8 state; /* of the flow afterwards */
	__u8 flags;
	__u8 tcp_flags;
	__u8 destination_mac[6]; /* before */
	__u8 out_mac[6];	 /* after */
};

/* Things that happen seldom and that the daemon wants to know at once. At most NOTICES_PER_TICK. */
enum notice_kind {
	NOTICE_LAST_HOP,	/* a new one was learned */
	NOTICE_LAST_HOP_BUDGET, /* one was not, for the budget */
	NOTICE_RELEARN_DAMPED,	/* a flow was kept from moving again so soon */
	NOTICE_VM,		/* a VM was seen for the first time */
	NOTICE_VM_MOVED,	/* a VM came to another tap */
	NOTICE_VM_BUDGET,
};

/* notices */
struct notice {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 last_hop; /* index, of NOTICE_LAST_HOP */
	__u16 zone;
	__u8 kind;   /* enum notice_kind */
	__u8 mac[6]; /* source of the frame */
	__u8 reserved[7];
};

/* devices: name -> a device of the operator's. Programs do not look here: they know last hops. */
struct device_key {
	char name[NAME_BYTES];
};

struct mac_address {
	__u8 octets[6];
};

struct ip_address {
	__u8 octets[16]; /* IPv4 as ::ffff:a.b.c.d; zero: none */
};

struct device_address {
	__u8 octets[16]; /* IPv4 as ::ffff:a.b.c.d; zero: none */
	__u8 mac[6];	 /* that it last resolved to; zero: none yet */
	__u16 reserved;
};

struct device_probe {
	struct device_address target; /* its MAC is not used; none: the device's first address */
	__u8 kind;		      /* enum probe_kind */
	__u8 fall;		      /* failures in a row that mean down */
	__u8 rise;		      /* answers in a row that mean up */
	__u8 reserved;
	__u16 port; /* host order */
	__u16 reserved2;
	__u32 interval_ms;
	__u32 timeout_ms;
};

struct device {
	char peer[NAME_BYTES]; /* of ON_DOWN_PEER */
	char interface[16];    /* name or glob of its uplinks; empty: all of the zone */
	struct device_address addresses[DEVICE_ADDRESSES_MAX];
	struct mac_address macs[DEVICE_MACS_MAX];  /* as given; zero: none */
	struct mac_address reply_mac;		   /* zero: each MAC is answered itself */
	struct ip_address vteps[DEVICE_VTEPS_MAX]; /* the ends of VXLAN tunnels that it is behind */
	__u16 zone;
	struct vlan_tag tags[2];
	struct device_probe probe;
	__u8 origin;	    /* enum origin */
	__u8 on_down;	    /* enum on_down */
	__u8 state;	    /* enum device_state */
	__u8 cause;	    /* enum cause */
	__u8 operator_down; /* the operator's word; wins over what is observed */
	__u8 reserved[3];
	__u32 changed; /* ticks, when state did */
	__u32 flaps;   /* changes of its MAC that came too soon after another */
};

/*
 * Label stacks that requests may come with, and the mark with which the host's routing, `encap
 * mpls`, finds that of the replies: labels are per direction.
 */
struct label_stack {
	__u32 labels[LABELS_MAX];
};

/* label_stacks: label_stack -> mark */

/* Tunnels that the programs put on and take off themselves. */
enum tunnel_kind {
	TUNNEL_NONE,
	TUNNEL_VXLAN, /* RFC 7348 */
	TUNNEL_NVGRE, /* RFC 7637: Ethernet in GRE, with a key or without */
	TUNNEL_GRE,   /* RFC 2784, 2890: IP in GRE */
	TUNNEL_IPIP,  /* RFC 2003, 2473, 4213: IP in IP, each in each */
	TUNNEL_MPLS,  /* RFC 3032: IP behind labels */
};

enum tunnel_flag {
	TUNNEL_KEY_PRESENT = 1 << 0, /* GRE has a key */
	TUNNEL_TTL_UNIFORM = 1 << 1, /* RFC 3443: labels take the TTL of the packet, and give it */
};

/* tunnels: ifindex of its netdev -> */
struct tunnel {
	__u8 kind;	    /* enum tunnel_kind */
	__u8 family;	    /* of the outer header, 4 or 6; 0 for MPLS */
	__u8 ttl;	    /* of the outer header or the labels */
	__u8 tos;	    /* of the outer header; of MPLS the traffic class */
	__u8 flags;	    /* enum tunnel_flag */
	__u8 label_count;   /* of the replies' labels */
	__be16 port;	    /* destination, of VXLAN */
	__u32 id;	    /* VNI, VSID, GRE key */
	__u32 ifindex;	    /* its netdev: one end of a veth pair */
	__u32 peer_ifindex; /* the other end */
	__u32 underlay;	    /* ifindex that it leaves by */
	__u8 local[16];	    /* IPv4 as ::ffff:a.b.c.d */
	__u8 remote[16];
	__u8 mac[6];		  /* of its netdev */
	__u8 next_hop[6];	  /* of MPLS: the neighbour's MAC */
	__u32 labels[LABELS_MAX]; /* of replies, outer first */
	char name[16];		  /* of its netdev */
	__u8 origin;		  /* enum origin */
	__u8 reserved[3];
	__u32 request_labels[LABELS_MAX];
	__u32 mtu;	      /* of its netdev */
	__u8 underlay_mac[6]; /* source of MPLS frames */
	__u8 reserved2[2];
};

/* tunnel_index: what the outer header of a packet shows -> ifindex of the tunnel's netdev */
struct tunnel_index_key {
	__u8 local[16];
	__u8 remote[16];
	__u32 id;
	__u32 labels[LABELS_MAX];
	/* Of MPLS: ifindex that it came in by. Without labels, that of peer_ifindex: what is sent.
	 */
	__u32 underlay;
	__be16 port;
	__u8 kind;
	__u8 flags; /* TUNNEL_KEY_PRESENT */
};

/* tunnel_stats: per CPU, by ifindex of the tunnel's netdev */
struct tunnel_stats {
	__u64 received_packets;
	__u64 received_bytes;
	__u64 sent_packets;
	__u64 sent_bytes;
	__u64 received_errors; /* headers that could not be taken off */
	__u64 sent_errors;     /* no route, no neighbour, too big, refused by the kernel */
};

/* identity[0]: which build's programs are pinned here. */
struct identity {
	__u8 object[32];	  /* SHA-256 of the object file */
	char version[NAME_BYTES]; /* of the package */
	__u32 starts;		  /* of the daemon */
};

/* layout[0]: the layout of these tables as JSON, for a version that has another. */
struct layout {
	__u32 bytes;
	__u8 text[LAYOUT_BYTES];
};

/* What one pass over one table found. sweep_reports: enum table -> the
 * pass under way, TABLES + enum table -> the last that ended */
enum table {
	TABLE_FLOWS4,
	TABLE_FLOWS6,
	TABLE_EMBRYOS4,
	TABLE_EMBRYOS6,
	TABLES,
};

#define AGE_BUCKETS 16 /* bucket n: idle below 2^n seconds, the last open */

struct sweep_report {
	__u64 entries;
	__u64 expired;
	__u64 states[FLOW_STATES];
	__u64 local_origin;
	__u64 ages[AGE_BUCKETS];
	__u64 evicted[FLOW_STATES]; /* by the LRU since the tables were made, in which state */
	__u64 started_ns;	    /* CLOCK_MONOTONIC */
	__u64 finished_ns;
	__u64 busy_ns; /* of that time, in the kernel's walk */
};

/* zone_reports: (zone's number * TABLES + enum table) * 2 -> pass under way, + 1 -> last that ended
 */
struct zone_report {
	__u64 states[FLOW_STATES];
};

/* sweep_control[0] */
struct sweep_control {
	__u32 idle_ticks; /* instead of every timeout; 0: the timeouts of control */
	__u32 budget_ns;  /* after which a read of the iterator returns */
	/* Where in last_hop_refs the pass counts, and where the last that ended did: 0 or
	 * LAST_HOPS_MAX. */
	__u32 refs;
	__u32 refs_ended;
};

/* What one read of a sweep iterator returns. */
struct sweep_record {
	__u64 entries;	  /* so far in this pass */
	__u64 elapsed_ns; /* of this read */
};

/* What sweep_key is asked to look at: one entry of a table with few. */
struct sweep_key {
	__u32 table; /* enum table */
	__u32 reserved;
	__u8 key[40];
};

/* sweep_work: enum table -> a pass under way */
struct sweep_work {
	__u64 started_ns; /* of this read, 0 between two */
	__u64 entries;
	__u32 pending; /* key holds an entry to delete */
	__u8 key[40];
	__u32 jiffies;	   /* when the clock was last looked at */
	__u32 zone;	   /* of the last entry, plus 1 */
	__u32 zone_number; /* its row in zone_reports */
};

#define ASSERT_BYTES(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " has another size")

ASSERT_BYTES(struct flow4_key, 16);
ASSERT_BYTES(struct flow6_key, 40);
ASSERT_BYTES(struct flow, 16);
ASSERT_BYTES(struct embryo, 24);
ASSERT_BYTES(struct tunnel_key, 40);
ASSERT_BYTES(struct encapsulation, 56);
ASSERT_BYTES(struct last_hop, 128);
ASSERT_BYTES(struct last_hop_key, 56);
ASSERT_BYTES(struct last_hop_stats, 40);
ASSERT_BYTES(struct verdict_count, 16);
ASSERT_BYTES(struct interface, 92);
ASSERT_BYTES(struct budget, 16);
ASSERT_BYTES(struct vm_key, 8);
ASSERT_BYTES(struct vm, 16);
ASSERT_BYTES(struct tap, 20);
ASSERT_BYTES(struct vm_cell, 24);
ASSERT_BYTES(struct vm_stats, 48);
ASSERT_BYTES(struct vm_spec, 28 + VM_SPEC_BYTES);
ASSERT_BYTES(struct service_spec, 16 + SERVICE_SPEC_BYTES);
ASSERT_BYTES(struct service_key, 28);
ASSERT_BYTES(struct service, 16);
ASSERT_BYTES(struct pool, 12);
ASSERT_BYTES(struct pool_line, 64);
ASSERT_BYTES(struct service_stats, 64);
ASSERT_BYTES(struct association_key, 24);
ASSERT_BYTES(struct affinity_key, 20);
ASSERT_BYTES(struct affinity, 8);
ASSERT_BYTES(struct exclusion, 24);
ASSERT_BYTES(struct exclusions, 4 + 24 * EXCLUSIONS_MAX);
ASSERT_BYTES(struct fragment_key, 40);
ASSERT_BYTES(struct fragment, 8);
ASSERT_BYTES(struct control, 72);
ASSERT_BYTES(struct allocations, 24);
ASSERT_BYTES(struct clock, 16);
ASSERT_BYTES(struct event, 88);
ASSERT_BYTES(struct notice, 32);
ASSERT_BYTES(struct device_address, 24);
ASSERT_BYTES(struct device_probe, 40);
ASSERT_BYTES(struct device, 328);
ASSERT_BYTES(struct label_stack, 16);
ASSERT_BYTES(struct tunnel, 132);
ASSERT_BYTES(struct tunnel_index_key, 60);
ASSERT_BYTES(struct tunnel_stats, 48);
ASSERT_BYTES(struct identity, 68);
ASSERT_BYTES(struct layout, 4 + LAYOUT_BYTES);
ASSERT_BYTES(struct sweep_report, 8 * (6 + 2 * FLOW_STATES + AGE_BUCKETS));
ASSERT_BYTES(struct zone_report, 8 * FLOW_STATES);
ASSERT_BYTES(struct sweep_control, 16);
ASSERT_BYTES(struct sweep_record, 16);
ASSERT_BYTES(struct sweep_key, 48);
ASSERT_BYTES(struct sweep_work, 72);

#endif
