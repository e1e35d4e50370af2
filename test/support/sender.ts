// SPDX-License-Identifier: Apache-2.0
// A UDP server in a VM that answers one datagram with several large ones, and says what became of each. Perl,
// because Node cannot set what a socket does about the path's MTU.

import type { Family } from "./addresses.ts";
import type { Background } from "./run.ts";
import type { Vm } from "./site.ts";

/** IP_PMTUDISC_*: `do` forbids fragments and refuses what does not fit; `dont` lets everybody cut. */
const DISCOVERY = { dont: 0, want: 1, do: 2 } as const;

export type Discovery = keyof typeof DISCOVERY;

const SERVER = `
  use strict; use Socket qw(:all); use Errno qw(EMSGSIZE); use Time::HiRes qw(sleep); $| = 1;
  my ($family, $port, $bytes, $discovery, $times) = @ARGV;
  my ($domain, $level, $option) = $family == 4 ? (AF_INET, 0, 10) : (AF_INET6, 41, 23);
  my $any = $family == 4 ? pack_sockaddr_in($port, INADDR_ANY) : pack_sockaddr_in6($port, IN6ADDR_ANY);
  socket(my $s, $domain, SOCK_DGRAM, 0) or die "socket: $!";
  setsockopt($s, $level, $option, pack("i", $discovery)) or die "setsockopt: $!";
  bind($s, $any) or die "bind: $!";
  print "listening\\n";
  defined(my $client = recv($s, my $asked, 65536, 0)) or die "recv: $!";
  for (1 .. $times) {
    # An error that came for an earlier datagram is told once, in place of sending.
    my $sent = send($s, chr(64 + $_) x $bytes, 0, $client);
    print defined $sent ? "sent\\n" : $! == EMSGSIZE ? "EMSGSIZE\\n" : "$!\\n";
    sleep 0.1;
  }
`;

export interface SenderOptions {
  family: Family;
  port: number;
  /** Of payload. */
  bytes: number;
  discovery: Discovery;
  times?: number;
}

export class Sender {
  readonly #process: Background;

  private constructor(process: Background) {
    this.#process = process;
  }

  static async start(vm: Vm, options: SenderOptions): Promise<Sender> {
    const { family, port, bytes, discovery, times = 3 } = options;
    const numbers = [family, port, bytes, DISCOVERY[discovery], times].map(String);
    const process = vm.namespace.start(["perl", "-e", SERVER, ...numbers]);
    await process.writes(/^listening\n/);
    return new Sender(process);
  }

  /** `sent`, `EMSGSIZE` or another error, for each datagram. Waits until it has sent all. */
  async results(): Promise<string[]> {
    const status = await this.#process.exited;
    if (status !== 0) throw new Error(`the sender ended with ${status}: ${this.#process.stderr}`);
    return this.#process.stdout.trim().split("\n").slice(1);
  }
}
