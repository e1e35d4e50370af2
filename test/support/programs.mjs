// SPDX-License-Identifier: Apache-2.0
// Asked on the host: the programs that the kernel runs on what comes in at each of some interfaces, by hook and in
// their order; null for an interface that is not there. By libbpf: bpftool of Debian 12 does not know TCX.

const CLSACT_INGRESS = 0xfffffff2;
const CLSACT_EGRESS = 0xfffffff3;

export default async function programs(dist, devices) {
  const { Netlink } = await import(`${dist}/kernel/netlink.js`);
  const { BpfProgram, tcxQuery } = await import(`${dist}/libbpf/index.js`);
  const named = (id) => {
    const program = BpfProgram.fromId(id);
    const { name } = program.info();
    program.close();
    return { id, name };
  };
  const netlink = new Netlink();
  const all = devices.map((device) => {
    const link = netlink.link(device);
    if (link === undefined) return null;
    const filters = [CLSACT_INGRESS, CLSACT_EGRESS].flatMap((parent) =>
      netlink.filters(link.ifindex, parent),
    );
    return {
      xdp: link.xdp ? [link.xdp.mode] : [],
      tcx: (tcxQuery(link.ifindex, "ingress") ?? []).map(named),
      clsact: filters.filter(({ programId }) => programId).map(({ programId }) => named(programId)),
    };
  });
  netlink.close();
  return all;
}
