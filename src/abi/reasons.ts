// SPDX-License-Identifier: Apache-2.0
// What each reason of abi.h means: the one place for the CLI, the counters and the documents.

import { REASON_NAMES } from "./codec.ts";
import { REASON, type VERDICT } from "./layout.gen.ts";

export type VerdictName = Lowercase<keyof typeof VERDICT>;

export interface ReasonInfo {
  verdict: VerdictName;
  /** The roles whose programs give it. */
  roles: readonly ("uplink" | "tap")[];
  /** One line for people, beginning in lower case. */
  text: string;
}

const either = (text: string): ReasonInfo => ({ verdict: "pass", roles: ["uplink", "tap"], text });
const uplink = (text: string, verdict: VerdictName = "pass"): ReasonInfo => ({
  verdict,
  roles: ["uplink"],
  text,
});
const tap = (text: string, verdict: VerdictName = "pass"): ReasonInfo => ({ verdict, roles: ["tap"], text });

export const REASON_INFO: Readonly<Record<keyof typeof REASON, ReasonInfo>> = {
  BYPASS: either("bypass is on: every packet passes"),
  NOT_ATTACHED: either("the interface is not in the table of attached interfaces"),
  NOT_IP: either("neither IPv4 nor IPv6"),
  MALFORMED: either("the headers contradict the length of the packet or each other"),
  VLAN_DEPTH: either("more than two VLAN tags"),
  EXTENSION_HEADERS: either("more IPv6 extension headers than are followed"),
  PROTOCOL: either("neither TCP, UDP, SCTP nor ICMP echo, nor an ICMP error that quotes one"),
  MULTICAST: either("multicast or broadcast"),
  FRAGMENT: either("a later fragment whose first fragment was not seen"),
  EXCLUDED: either("the operator excluded such flows on this interface"),
  ERROR: either("a map or helper failed"),
  LEARN: uplink("a new flow was learned"),
  REFRESH: uplink("a request of a known flow by the same last hop"),
  RELEARN: uplink("a request by another last hop: the flow was moved to it"),
  PROMOTE: uplink("both directions are proven: the flow moved to the established tier"),
  RESTART: uplink("a new connection between the same ends replaced the flow"),
  ANSWER: uplink("the answer to a connection that the VM opened"),
  QUOTED: uplink("an ICMP error about a known flow"),
  NOT_REQUEST: uplink(
    "no flow, and this packet never begins one (SYN-ACK, RST, ICMP error, echo reply, later fragment)",
  ),
  NOT_FOR_VM: uplink("not addressed to a VM of this host"),
  FOR_HOST: uplink("for the host itself"),
  SOURCE_MAC: uplink("the source MAC is multicast, zero or the host's own"),
  SOURCE_VM: uplink("the source MAC is that of a VM of this host"),
  PORT_BLOCKED: uplink("the bridge port does not forward"),
  OTHER_VM: uplink("addressed to another VM than the flow's"),
  RELEARN_OFF: uplink("came from another last hop, and the interface never relearns"),
  RELEARN_DAMPED: uplink("came from another last hop, too soon after the flow had moved"),
  PICKUP_OFF: uplink("from the middle of a connection without a flow, and the interface picks none up"),
  UNKNOWN_DEVICE: uplink("not from a configured device, and the interface learns from those only"),
  LAST_HOP_BUDGET: uplink("the interface may make no further last hop"),
  REDIRECT: tap("sent to the last hop of its flow", "redirect"),
  DEVICE_DROP: tap("the flow's device is down and the operator asked for a drop", "drop"),
  OFF: tap("the policy of the tap is off"),
  NO_FLOW: tap("no flow: no request was seen, or the flow has expired"),
  LOCAL_ORIGIN: tap("the VM opened the connection: its own route stands"),
  OBSERVE_CHANGE: tap("the policy is observe: enforce would have sent it another way"),
  OBSERVE_SAME: tap("the policy is observe: enforce would have sent it the same way"),
  VM_MISMATCH: tap("the flow belongs to another VM"),
  VM_BUDGET: tap("the VM is unknown and the tap may enter no further one"),
  STALE_LAST_HOP: tap("the last hop that the flow names was released"),
  DEVICE_DOWN: tap("the flow's device is down: the VM's own route stands"),
  INTERFACE_GONE: tap("the interface of the last hop is gone"),
  TTL: tap("TTL or hop limit used up: the host's stack answers"),
  HAIRPIN: tap("the last hop is behind the tap that the packet came from"),
  LABEL_DEPTH: uplink("more MPLS labels than are followed"),
  LEARNED_BELOW: uplink("learned before, where it came in beneath this interface"),
  UNKNOWN_LABELS: uplink("no reply's labels are configured for the MPLS label stack of the request"),
  STACK: tap("handed to the host's own routing, marked", "stack"),
  TOO_BIG: tap("too big for the way back: the VM was told so by an ICMP error", "answer"),
  DELIVER: uplink("handed to the VM of its flow, which stays as it is", "redirect"),
  DELIVER_HOOK: uplink("for a service's VM whose tap cannot be reached from this hook, or came in MPLS"),
  SERVICE_EMPTY: uplink("for a service of which no VM is up", "drop"),
  VM_HELD: uplink("the flow waits for its VM, which is down", "drop"),
  VM_RESET: uplink("the flow's VM is down: the sender was told so by a TCP reset", "answer"),
  ADDRESS_ANSWER: uplink("ARP or neighbour discovery for the address of a service: answered", "answer"),
};

export interface NamedReason extends ReasonInfo {
  name: string;
}

const BY_VALUE: readonly NamedReason[] = Object.values(REASON).map((value) => ({
  name: REASON_NAMES[value]!,
  ...REASON_INFO[REASON_NAMES[value]!.toUpperCase() as keyof typeof REASON],
}));

/** By the enumerator's value; a value that abi.h does not have gets a name that says so. */
export function reasonOf(value: number): NamedReason {
  return (
    BY_VALUE[value] ?? { name: `reason_${value}`, ...either("a reason that this version does not know") }
  );
}
