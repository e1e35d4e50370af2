// SPDX-License-Identifier: Apache-2.0
import { defineGuestTests } from "./suite.ts";

await defineGuestTests("6.1");
