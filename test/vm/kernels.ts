// SPDX-License-Identifier: Apache-2.0
// Which kernels, and what runs on each. To add a test file, add a line here: see docs/testing-kernels.md.

/** `default`: in `make test`. `full`: with `LANE=full`, which runs the default ones too. */
export type Lane = "default" | "full";

export interface GuestKernel {
  /** What the test file is called after. */
  series: string;
  /** Of packages, of which the newest is taken: versions move. */
  packages: RegExp;
  /** The time within which a guest must have ended. */
  limitMinutes: Record<Lane, number>;
  /** How much of the pairs of interfaces `make test-matrix` plays there, and the time that this may take. */
  matrix: { pairs: "ring" | "product"; limitMinutes: number };
  /** Loaded before the tests; each must be there. */
  modules: readonly string[];
  tests: Readonly<Record<string, Lane | TestSelection>>;
}

/** Of a file whose tests are not all for each lane: those whose full name matches. Names are joined by blanks. */
export interface TestSelection {
  /** Without it the file is not in the default lane. */
  default?: RegExp;
  /** Beside those of the default lane; without it all. */
  full?: RegExp;
}

/** Interface kinds, hooks and what the sites of the tests need. */
const MODULES = [
  ...["veth", "bridge", "tun", "macvlan", "dummy", "ifb", "8021q", "bonding", "vrf", "vxlan", "geneve"],
  ...["gre", "ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel", "fou", "wireguard"],
  ...["esp4", "esp6", "xfrm_user", "xfrm_interface", "mpls_router", "mpls_iptunnel", "mpls_gso"],
  ...["sch_ingress", "cls_bpf", "act_bpf", "sch_fq_codel"],
  ...["nf_tables", "nft_ct", "nft_chain_nat", "nft_masq", "nf_conntrack", "nf_conntrack_netlink"],
];

/** The hot path of services. */
const SERVICES: Readonly<Record<string, Lane>> = {
  "test/kernel/services.test.ts": "default",
  "test/kernel/serviceFrames.test.ts": "default",
  "test/kernel/serviceWire.test.ts": "default",
  "test/kernel/transparent.test.ts": "default",
  "test/kernel/answers.test.ts": "default",
  "test/kernel/serviceFlows.test.ts": "full",
  "test/kernel/serviceChoice.test.ts": "full",
  "test/kernel/serviceCounts.test.ts": "full",
  "test/kernel/serviceTables.test.ts": "full",
  "test/kernel/serviceFuzz.test.ts": "full",
  "test/kernel/vmDown.test.ts": "full",
  "test/kernel/vmReset.test.ts": "full",
  "test/kernel/responses.test.ts": "full",
};

export const KERNELS: readonly GuestKernel[] = [
  {
    // The oldest that is supported. No TCX: TC means clsact.
    series: "6.1",
    packages: /^linux-image-6\.1\.\d+-\d+-amd64$/,
    limitMinutes: { default: 40, full: 240 },
    matrix: { pairs: "ring", limitMinutes: 60 },
    modules: MODULES,
    tests: {
      // The programs: they load, and do with every kind of packet what they should.
      "test/kernel/load.test.ts": "default",
      "test/kernel/rows.test.ts": "default",
      "test/kernel/wire.test.ts": "default",
      "test/kernel/bookkeeping.test.ts": "default",
      "test/kernel/trace.test.ts": "default",
      ...SERVICES,
      "test/kernel/tables.test.ts": "full",
      "test/kernel/sweeper.test.ts": "full",
      "test/kernel/sweep.test.ts": "full",
      "test/kernel/devices.test.ts": "full",
      "test/kernel/evictions.test.ts": "full",
      "test/kernel/fuzz.test.ts": "full",
      "test/kernel/mtu.test.ts": "full",
      "test/kernel/tunnel.test.ts": "full",
      "test/kernel/xfrm.test.ts": "full",
      // The hooks.
      "test/net/attach.test.ts": {
        default: /is a veth|hook to hook|fixed place|on XDP: auto|without a filter/,
      },
      // The wire.
      "test/net/asymmetric.test.ts": {
        default: /bridged host with two uplinks IPv4|mode tc/,
        full: /two uplinks|in mode/,
      },
      "test/net/matrix.test.ts": "full",
      "test/net/vlan.test.ts": { default: /QinQ.* IPv4/ },
      "test/net/bulk.test.ts": { default: /bridged host, uplinks in mode tc IPv4/, full: /mode tc/ },
      "test/net/failover.test.ts": { default: /'bridged' host with 'separate' uplinks IPv4/ },
      "test/net/icmp.test.ts": { full: /bridged host IPv/ },
      "test/net/fragments.test.ts": "full",
      // What restarts: interfaces, commands, the daemon.
      "test/net/returning.test.ts": {
        default: /bridged host attached by hand keeps the flows/,
        full: /attached by hand|knows a guest again|bridge port/,
      },
      "test/net/apply.test.ts": { full: /two uplinks and taps by pattern/ },
      "test/net/daemon.test.ts": {
        default: /killed at any moment and started/,
        full: /a bridged host|second daemon|reloaded changes/,
      },
      "test/net/upgrade.test.ts": { full: /bridged host exchanges/ },
    },
  },
  {
    // A long-term one with TCX.
    series: "6.12",
    packages: /^linux-image-6\.12\.\d+(\+deb\d+)?-amd64$/,
    limitMinutes: { default: 40, full: 240 },
    matrix: { pairs: "product", limitMinutes: 360 },
    modules: MODULES,
    tests: {
      "test/kernel/load.test.ts": "default",
      "test/kernel/wire.test.ts": "default",
      "test/kernel/trace.test.ts": "default",
      ...SERVICES,
      "test/kernel/rows.test.ts": "full",
      "test/kernel/bookkeeping.test.ts": "full",
      "test/net/attach.test.ts": {
        default: /is a veth|hook to hook|fixed place/,
        full: /uplink|clsact|foreign|killed command/,
      },
      "test/net/asymmetric.test.ts": { default: /mode tc/, full: /bridged host with two uplinks/ },
      // Every kind of routing interface that there is.
      "test/net/matrix.test.ts": "default",
      "test/net/xfrm.test.ts": { default: /one XFRM interface/, full: /another layout/ },
      "test/net/kinds-failover.test.ts": "full",
      "test/net/kinds-attach.test.ts": "full",
      "test/net/vlan.test.ts": { default: /QinQ.* IPv4/, full: /802.1Q/ },
      "test/net/bulk.test.ts": { full: /bridged host, uplinks in mode tc/ },
      "test/net/failover.test.ts": { full: /'bridged' host with 'separate' uplinks/ },
      "test/net/returning.test.ts": { full: /attached by hand keeps the flows/ },
      "test/net/daemon.test.ts": {
        default: /bridged host attaches/,
        full: /killed at any moment and started/,
      },
    },
  },
];
