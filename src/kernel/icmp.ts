// SPDX-License-Identifier: Apache-2.0
export { type EchoReply, IcmpSocket } from "../libc/icmpSocket.ts";
