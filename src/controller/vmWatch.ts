// SPDX-License-Identifier: Apache-2.0
// One VM as the monitor follows it: what its check and the neighbour table say of it. No kernel, no clock.

import { CAUSE, VM_STATE } from "../abi/layout.gen.ts";
import { formatMac } from "../addresses.ts";
import type { CheckConfig } from "../config/services.ts";
import type { Neighbour } from "../kernel/rtnetlink.ts";
import { isZero, type VmSpec } from "../tables/index.ts";
import { type AddressSighting, AddressWatch } from "./addressWatch.ts";
import { type Evidence, type ProbeHistory, probed } from "./deviceStates.ts";
import { addressOctets, addressText } from "./devices.ts";
import type { NamedVm } from "./serviceSpec.ts";
import { checkText } from "./vmChecks.ts";
import { type VmCondition, vmStateOf } from "./vmState.ts";

export interface VmFinding {
  /** enum vm_state: UP, DOWN, or UNKNOWN where nothing can be said yet. */
  health: number;
  /** enum cause: NEIGHBOUR or PROBE if it is down, else NONE. */
  cause: number;
  /** For people, if it is down. */
  why: string | null;
}

export class VmWatch {
  readonly name: string;
  /** As it was judged last. */
  condition: VmCondition;
  #named: NamedVm;
  #address: AddressWatch | null;
  #check: ProbeHistory | null;
  /** Why the last check failed. */
  #why: string | null = null;
  /** It counts as dead only because it was not there: attempts to ask it until that counts no longer. */
  #attempts = 0;
  /** Of an address of which nothing was seen yet: one that was down when a daemon ended is not up until it is seen. */
  #assumed: Evidence;

  constructor(named: NamedVm) {
    this.name = named.name;
    this.#named = named;
    const { state, cause, health } = named.spec;
    this.condition = { state, cause };
    this.#address = addressOf(named);
    this.#check = historyOf(named);
    this.#assumed = this.#check === null && health === VM_STATE.DOWN ? "bad" : "unknown";
  }

  get spec(): VmSpec {
    return this.#named.spec;
  }

  get config(): NamedVm["config"] {
    return this.#named.config;
  }

  /** The one that is followed in the neighbour table, as the kernel writes it. */
  get address(): string | null {
    return this.#address?.text ?? null;
  }

  /** Whom its check asks; null if it has none. */
  get asked(): { check: CheckConfig; address: string } | null {
    const { check, address } = this.config;
    const asked = check?.address ?? address;
    return check === undefined || asked === undefined ? null : { check, address: asked };
  }

  /** Its entry is another. What was seen of what stays is kept. True if its check is to begin anew. */
  change(named: NamedVm): boolean {
    const before = JSON.stringify(this.asked);
    const { address } = this.config;
    this.#named = named;
    if (named.config.address !== address) {
      this.#address = addressOf(named);
      this.#assumed = "unknown";
    }
    if (JSON.stringify(this.asked) === before) return false;
    this.#check = historyOf(named);
    this.#why = null;
    this.#attempts = 0;
    return true;
  }

  neighbourSeen(neighbour: Neighbour, nowMs: number): AddressSighting | null {
    if (this.#address?.text !== neighbour.address) return null;
    const sighting = this.#address.seen(neighbour, this.#assumed, nowMs);
    if (sighting.evidence === "good") this.#assumed = "unknown";
    return sighting;
  }

  /** A MAC that was held back may be due. */
  due(nowMs: number): AddressSighting["change"] {
    return this.#address?.due(nowMs) ?? null;
  }

  /** `why`: it failed. */
  checked(why: string | null): void {
    const { check } = this.config;
    if (!this.#check || !check) return;
    this.#attempts = 0;
    this.#check = probed(this.#check, why === null, check);
    if (why !== null) this.#why = `${checkText(check)}: ${why}`;
  }

  /** Its tap is gone or down. What comes there again is not well before it has answered. */
  lost(): void {
    const { check } = this.config;
    if (!check) return;
    this.#check = { evidence: "bad", against: check.rise - 1 };
    this.#why = "it has not answered since its tap came back";
    this.#attempts = check.fall;
  }

  /** It could not be asked. If that lasts, that it has not answered says nothing. */
  notAsked(): void {
    const { check } = this.config;
    if (!check || this.#attempts === 0) return;
    this.#attempts--;
    if (this.#attempts === 0) this.#check = { evidence: "unknown", against: check.fall - 1 };
  }

  /** `ifindexes`: where its address is asked for; `mayAsk`: the host has an address there to ask from. */
  finding(ifindexes: ReadonlySet<number>, mayAsk: boolean): VmFinding {
    const { UP, DOWN, UNKNOWN } = VM_STATE;
    const neighbour = this.#address?.evidence(ifindexes, this.#assumed) ?? "unknown";
    if (neighbour === "bad" && mayAsk) {
      const why = `nobody answers for ${this.config.address}`;
      return { health: DOWN, cause: CAUSE.NEIGHBOUR, why };
    }
    const check = this.#check?.evidence ?? null;
    if (check === "bad") return { health: DOWN, cause: CAUSE.PROBE, why: this.#why ?? "its check failed" };
    const isWell = check === "good" || (check === null && neighbour === "good");
    return { health: isWell ? UP : UNKNOWN, cause: CAUSE.NONE, why: null };
  }

  /** Whether its entry says something else of its health, or of what that comes from. */
  differs({ health, cause }: VmFinding): boolean {
    const { spec } = this;
    if (health !== spec.health) return true;
    // Of one whose MAC is not known, that comes first.
    const isOfHealth = !isZero(spec.mac) && (spec.cause === CAUSE.NEIGHBOUR || spec.cause === CAUSE.PROBE);
    return health === VM_STATE.DOWN && isOfHealth && spec.cause !== cause;
  }

  /** Why it is in a state, for people. */
  why({ cause }: VmCondition, finding: VmFinding): string {
    switch (cause) {
      case CAUSE.OPERATOR:
        return "the operator took it down";
      case CAUSE.INTERFACE:
        return `${this.config.tap ?? "its tap"} is not there, not up, or not attached`;
      case CAUSE.NEIGHBOUR:
        return finding.why ?? "its MAC is not known";
      case CAUSE.PROBE:
        return finding.why ?? "its check failed";
      default:
        return "there is no place for it in the tables";
    }
  }

  /**
   * What bad was found counts at once; else it is in the state that its entry says: up it comes by being settled only.
   * `tapThere`: the tap that its entry names is. `before` is null if that is nothing new.
   */
  judge(finding: VmFinding, tapThere: boolean): { now: VmCondition; before: VmCondition | null } {
    const { state, cause, ifindex } = this.spec;
    const own = vmStateOf({ ...this.spec, ...finding }, { tapThere, macKnown: true });
    const now = ifindex !== 0 && own.state === VM_STATE.DOWN ? own : { state, cause };
    const before = this.condition;
    this.condition = now;
    const isSame = before.state === now.state && before.cause === now.cause;
    return { now, before: isSame ? null : before };
  }
}

/**
 * One that was well has to fail as often as its check says, one that was not has to answer as often. Of one that was
 * never asked the first answer counts, whatever it is.
 */
function historyOf({ config: { check }, spec: { health } }: NamedVm): ProbeHistory | null {
  if (!check) return null;
  if (health === VM_STATE.UP) return { evidence: "good", against: 0 };
  if (health === VM_STATE.DOWN) return { evidence: "bad", against: 0 };
  return { evidence: "unknown", against: check.fall - 1 };
}

function addressOf({ config, spec }: NamedVm): AddressWatch | null {
  if (config.address === undefined) return null;
  const text = addressText(addressOctets(config.address));
  return new AddressWatch(text, isZero(spec.mac) ? null : formatMac(spec.mac));
}
