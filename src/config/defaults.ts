// SPDX-License-Identifier: Apache-2.0
// What holds when nobody configured anything.

export const DEFAULT_PIN_ROOT = "/sys/fs/bpf/lasthop";

export const DEFAULT_CONFIG_PATH = "/etc/lasthop/lasthop.yaml";

/** By enum timeout, in seconds of silence. */
export const TIMEOUT_SECONDS = {
  SYN: 30,
  TCP: 7200,
  CLOSED: 10,
  UDP: 60,
  UDP_PROVISIONAL: 5,
  ICMP: 10,
  SCTP: 3600,
} as const;

/** So long a flow that moved to another last hop stays there: two MACs may take turns. */
export const RELEARN_DAMPING_SECONDS = 1;

/** Last hops that an uplink may make on its own: a flood of source MACs must not take them all. */
export const LAST_HOPS_PER_UPLINK = 4096;

/** Bytes of an IP packet: what every IPv4 host takes (RFC 791), and what its length field can say. */
export const MTU_MIN = 68;
export const MTU_MAX = 65_535;

/** Firewall marks have 32 bits; MPLS labels have 20. */
export const MARK_MAX = 0xffff_ffff;
export const LABEL_MAX = 0xf_ffff;
export const LABELS_PER_STACK = 4;

/** VMs that a tap may enter on its own: one, or a few behind a nested bridge. */
export const VMS_PER_TAP = 256;

/** clsact, where there is no TCX: our filter is found again by these. Later priorities run after us. */
export const TC_FILTER = { handle: 1, priority: 0x6c68 } as const;

/** The same of the tunnels' programs, which may be beside ours on an underlay. */
export const TUNNEL_FILTER = { handle: 1, priority: 0x6c67 } as const;

/** A device's MAC may change so often within the window; then the present one is held, each time twice as long. */
export const MAC_CHANGES_WITHIN_WINDOW = 3;
export const MAC_CHANGES_WINDOW_SECONDS = 30;
export const MAC_HOLD_SECONDS = 10;
export const MAC_HOLD_MAX_SECONDS = 300;

/** How often the kernel is told to ask a device's address whether it is still there. */
export const NEIGHBOUR_PROBE_SECONDS = 5;

/** Probes that may be under way at once. */
export const PROBES_AT_ONCE = 32;

/** Checks of VMs that may be under way at once: each that is not answered takes its place until it times out. */
export const CHECKS_AT_ONCE = 128;

/** MACs behind a device's VTEPs that are its last hops before they send anything: a VTEP may have thousands. */
export const VTEP_LAST_HOPS_PER_DEVICE = 256;
