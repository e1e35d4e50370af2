// SPDX-License-Identifier: Apache-2.0
// The label stacks that requests may come with: from the configuration to the table.

import { decode, encode } from "../abi/codec.ts";
import type { Config } from "../config/schema.ts";
import type { Tables } from "../tables/index.ts";
import type { Step } from "./steps.ts";

/** struct label_stack in hexadecimal → mark of the replies. */
export type LabelStacks = ReadonlyMap<string, number>;

export interface LabelStackChanges {
  set: LabelStacks;
  removed: readonly string[];
}

export function labelStackId(labels: readonly number[]): string {
  return encode("label_stack", { labels }).toString("hex");
}

export function desiredLabelStacks({ mpls }: Pick<Config, "mpls">): LabelStacks {
  return new Map(mpls.label_stacks.map(({ request, mark }) => [labelStackId(request), mark]));
}

export function readLabelStacks({ labelStacks }: Pick<Tables, "labelStacks">): LabelStacks {
  return new Map([...labelStacks.entries()].map(([{ labels }, mark]) => [labelStackId(labels), mark]));
}

/** Null if all is as wanted. */
export function labelStackChanges(wanted: LabelStacks, present: LabelStacks): LabelStackChanges | null {
  const set = new Map([...wanted].filter(([id, mark]) => present.get(id) !== mark));
  const removed = [...present.keys()].filter((id) => !wanted.has(id));
  return set.size + removed.length === 0 ? null : { set, removed };
}

export function labelStackText({ set, removed }: LabelStackChanges): string {
  const parts = [
    ...[...set].map(([id, mark]) => `${shown(id)} has mark 0x${mark.toString(16)}`),
    ...removed.map((id) => `${shown(id)} removed`),
  ];
  const first = parts.slice(0, SHOWN).join(", ");
  return `label stacks: ${first}${parts.length > SHOWN ? ` and ${parts.length - SHOWN} more` : ""}`;
}

const SHOWN = 4;

function shown(id: string): string {
  const { labels } = decode("label_stack", Buffer.from(id, "hex"));
  return labelsText(labels);
}

/** Outer first, without the places that no label has: explicit null (0) alone, or none, is 0. */
export function labelsText(labels: readonly number[]): string {
  const count = labels.findLastIndex((label) => label !== 0) + 1;
  return labels.slice(0, Math.max(count, 1)).join("/");
}

/** New ones first: a stack that is replaced is never unknown. */
export function labelStackSteps(tables: Pick<Tables, "labelStacks">, changes: LabelStackChanges): Step[] {
  const { labelStacks } = tables;
  const keyOf = (id: string) => decode("label_stack", Buffer.from(id, "hex"));
  const put = (id: string, mark: number | undefined): void => {
    if (mark === undefined) labelStacks.delete(keyOf(id));
    else labelStacks.set(keyOf(id), mark);
  };
  const step = (id: string, mark: number | undefined): Step => {
    const before = labelStacks.get(keyOf(id));
    return { done: null, do: () => put(id, mark), undo: () => put(id, before) };
  };
  return [
    ...[...changes.set].map(([id, mark]) => step(id, mark)),
    ...changes.removed.map((id) => step(id, undefined)),
  ];
}
