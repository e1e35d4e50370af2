// SPDX-License-Identifier: Apache-2.0
import type { Row } from "../support/rows.ts";
import { belowRows } from "./below.ts";
import { fragmentRows } from "./fragments.ts";
import { guardingRows } from "./guarding.ts";
import { icmpRows } from "./icmp.ts";
import { keyRows } from "./keys.ts";
import { labelRows } from "./labels.ts";
import { learningRows } from "./learning.ts";
import { linkLayerRows } from "./linkLayer.ts";
import { localRows } from "./local.ts";
import { movingRows } from "./moving.ts";
import { parsingRows } from "./parsing.ts";
import { promotionRows } from "./promotion.ts";
import { replyRows } from "./replying.ts";
import { stackRows } from "./stack.ts";
import { stateRows } from "./states.ts";
import { tagRows } from "./tags.ts";

export const ROW_GROUPS: Record<string, Row[]> = {
  learning: learningRows,
  "refresh, relearn, restart": movingRows,
  guarding: guardingRows,
  promotion: promotionRows,
  states: stateRows,
  "local origin": localRows,
  reply: replyRows,
  tags: tagRows,
  labels: labelRows,
  "the host's stack": stackRows,
  "learned below": belowRows,
  "no link layer": linkLayerRows,
  "keys of last hops": keyRows,
  ICMP: icmpRows,
  fragments: fragmentRows,
  parsing: parsingRows,
};

export const allRows: Row[] = Object.values(ROW_GROUPS).flat();
