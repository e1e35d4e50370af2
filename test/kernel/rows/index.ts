// SPDX-License-Identifier: Apache-2.0
import type { Row } from "../support/rows.ts";
import { fragmentRows } from "./fragments.ts";
import { guardingRows } from "./guarding.ts";
import { icmpRows } from "./icmp.ts";
import { learningRows } from "./learning.ts";
import { localRows } from "./local.ts";
import { movingRows } from "./moving.ts";
import { parsingRows } from "./parsing.ts";
import { promotionRows } from "./promotion.ts";
import { replyRows } from "./replying.ts";
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
  ICMP: icmpRows,
  fragments: fragmentRows,
  parsing: parsingRows,
};

export const allRows: Row[] = Object.values(ROW_GROUPS).flat();
