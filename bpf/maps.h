/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every table, and what maps to what. */
#ifndef LASTHOP_MAPS_H
#define LASTHOP_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* Five-tuple and zone of a proven connection -> where its requests come from. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS_MAX);
	__type(key, struct flow4_key);
	__type(value, struct flow);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS_MAX);
	__type(key, struct flow6_key);
	__type(value, struct flow);
} flows6 SEC(".maps");

/* The same for what is not proven yet: a flood churns only these. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EMBRYOS_MAX);
	__type(key, struct flow4_key);
	__type(value, struct embryo);
} embryos4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, EMBRYOS_MAX);
	__type(key, struct flow6_key);
	__type(value, struct embryo);
} embryos6 SEC(".maps");

/*
 * The tables before these, while they are exchanged for others in size (control.migrating): the
 * programs take over what they miss. Empty otherwise, so that nothing is held.
 */
#define PREVIOUS(name, key_type, value_type)                                                       \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                          \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__array(                                                                           \
			values, struct {                                                           \
				__uint(type, BPF_MAP_TYPE_LRU_HASH);                               \
				__uint(max_entries, 1);                                            \
				__uint(key_size, sizeof(key_type));                                \
				__uint(value_size, sizeof(value_type));                            \
			});                                                                        \
	} name SEC(".maps")

PREVIOUS(previous_flows4, struct flow4_key, struct flow);
PREVIOUS(previous_flows6, struct flow6_key, struct flow);
PREVIOUS(previous_embryos4, struct flow4_key, struct embryo);
PREVIOUS(previous_embryos6, struct flow6_key, struct embryo);

/*
 * enum table * FLOW_STATES + state -> flows that came into that state less those that left it, by a
 * change of state or deleted. What is not found there by a sweep the LRU has evicted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TABLES *FLOW_STATES);
	__type(key, __u32);
	__type(value, __u64);
} flow_balance SEC(".maps");

/* The same of what user space deleted, to be taken off; only user space writes it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TABLES *FLOW_STATES);
	__type(key, __u32);
	__type(value, __u64);
} flow_removals SEC(".maps");

/* Index -> immutable record of a last hop. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LAST_HOPS_MAX);
	__type(key, __u32);
	__type(value, struct last_hop);
} last_hops SEC(".maps");

/* Index that a flow names -> generation and index of the record to use, or that the device is down.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LAST_HOPS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} last_hop_alias SEC(".maps");

/* Indices given back; those never used are from allocations.last_hops on. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, LAST_HOPS_MAX);
	__type(value, __u32);
} last_hop_free SEC(".maps");

/* What a frame shows -> index. Several keys may name one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LAST_HOPS_MAX);
	__type(key, struct last_hop_key);
	__type(value, __u32);
} last_hop_index SEC(".maps");

/* Of the packet at hand: what it came in, if that is more than a frame. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct encapsulation);
} scratch SEC(".maps");

/* Label stack of a request -> mark with which the host's routing finds the one of the reply. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LABEL_STACKS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct label_stack);
	__type(value, __u32);
} label_stacks SEC(".maps");

/* ifindex of a tunnel's netdev -> what to put around its packets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TUNNELS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct tunnel);
} tunnels SEC(".maps");

/* What an outer header shows -> ifindex of the tunnel's netdev. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TUNNELS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tunnel_index_key);
	__type(value, __u32);
} tunnel_index SEC(".maps");

/* ifindex of a tunnel's netdev -> traffic. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, TUNNELS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct tunnel_stats);
} tunnel_stats SEC(".maps");

/* Index -> traffic. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LAST_HOPS_MAX);
	__type(key, __u32);
	__type(value, struct last_hop_stats);
} last_hop_stats SEC(".maps");

/* Index, or LAST_HOPS_MAX + index -> flows that name it, as a sweep counted them. Sweeps alternate.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LAST_HOPS_MAX * 2);
	__type(key, __u32);
	__type(value, __u32);
} last_hop_refs SEC(".maps");

/* Slot of an interface * REASONS + reason -> packets that left with it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, INTERFACES_MAX *REASONS);
	__type(key, __u32);
	__type(value, struct verdict_count);
} verdicts SEC(".maps");

/* ifindex -> role, zone, policy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, INTERFACES_MAX * 2);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

/* The same where it is found faster: ifindex % NEAR_INTERFACES -> */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_INTERFACES);
	__type(key, __u32);
	__type(value, struct interface);
} near_interfaces SEC(".maps");

/* Slot of a tap -> its usual VM. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERFACES_MAX);
	__type(key, __u32);
	__type(value, struct tap);
} taps SEC(".maps");

/* Slot -> flows that are left alone there. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERFACES_MAX);
	__type(key, __u32);
	__type(value, struct exclusions);
} exclusions SEC(".maps");

/* Name -> device of the operator's. For the controller only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct device_key);
	__type(value, struct device);
} devices SEC(".maps");

/* Zone -> its number in zone_reports, from 1; the zones that have none are counted as number 0. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ZONES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} zones SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ZONES_MAX *TABLES * 2);
	__type(key, __u32);
	__type(value, struct zone_report);
} zone_reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct identity);
} identity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct layout);
} layout SEC(".maps");

/* Slot -> what the hot path may still create for this interface. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERFACES_MAX);
	__type(key, __u32);
	__type(value, struct budget);
} budgets SEC(".maps");

/* Slot -> its netdev. The kernel empties a cell when the netdev goes; bpf_redirect would not
 * notice. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, INTERFACES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} egress_devices SEC(".maps");

/* Zone and MAC -> VM. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VMS_MAX);
	__type(key, struct vm_key);
	__type(value, struct vm);
} vms SEC(".maps");

/* Cell -> a VM that frames are handed to. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32);
	__type(value, struct vm_cell);
} vm_cells SEC(".maps");

/* Cell -> traffic. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32);
	__type(value, struct vm_stats);
} vm_stats SEC(".maps");

/* Cell -> flows of services that are open; set right by each sweep, as the LRU evicts some. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VMS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} vm_flows SEC(".maps");

/* Cell, or VMS_MAX + cell -> the same as a sweep counted it, as in last_hop_refs; 2 * VMS_MAX rows
 * further those that are closed, and those that the VM opened and whose answers are handed to it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VMS_MAX * 4);
	__type(key, __u32);
	__type(value, __u32);
} vm_refs SEC(".maps");

/* Name -> VM of the operator's. For the controller only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VM_SPECS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct vm_name);
	__type(value, struct vm_spec);
} vm_specs SEC(".maps");

/* Name -> service of the operator's. For the controller only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SERVICES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_name);
	__type(value, struct service_spec);
} service_specs SEC(".maps");

/* Zone, protocol, port and longest prefix of the address -> index of the service. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, SERVICE_KEYS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, __u32);
} service_index SEC(".maps");

/* Index -> what the service wants. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SERVICES_MAX + 1);
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

/* Index of the service -> what it did. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SERVICES_MAX + 1);
	__type(key, __u32);
	__type(value, struct service_stats);
} service_stats SEC(".maps");

/* Index -> where the cells of a pool's VMs stand. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POOLS_MAX);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

/* Cells of VMs, POOL_LINE_CELLS in a line: an element of an array takes 8 bytes at least. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POOL_LINES_MAX);
	__type(key, __u32);
	__type(value, struct pool_line);
} pool_lines SEC(".maps");

/* Index of a pool -> how often its turn has come. Only programs write it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POOLS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} pool_cursors SEC(".maps");

/* Service and longest prefix of the client -> index of the pool for it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, ASSOCIATIONS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct association_key);
	__type(value, __u32);
} associations SEC(".maps");

/* Client and service -> its VM. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, AFFINITIES_MAX);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* First fragment -> ports for those that follow it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_MAX);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

/* Five-tuple (IPv4 as ::ffff:a.b.c.d) -> number of the trace that wants its decisions. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TRACES_MAX);
	__type(key, struct flow6_key);
	__type(value, __u32);
} traces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, NOTICES_BYTES);
} notices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct allocations);
} allocations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TABLES * 2);
	__type(key, __u32);
	__type(value, struct sweep_report);
} sweep_reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweep_control);
} sweep_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TABLES);
	__type(key, __u32);
	__type(value, struct sweep_work);
} sweep_work SEC(".maps");

#endif
