// SPDX-License-Identifier: Apache-2.0

import { describeTables } from "../support/tableCases.ts";
import { memorySource } from "../support/tableSource.ts";

describeTables("tables in memory", memorySource);
