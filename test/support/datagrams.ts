// SPDX-License-Identifier: Apache-2.0
// A listener on an AF_UNIX datagram socket, as systemd has one for sd_notify. Perl has them, Node does not.

import { Background, until } from "./run.ts";

/** Writes "listening", then each datagram in hex, one a line. */
const LISTENER = `
  use Socket; $| = 1;
  my $name = shift; $name =~ s/^@/\\0/;
  socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
  bind($s, pack_sockaddr_un($name)) or die "bind: $!";
  print "listening\\n";
  while (defined recv($s, my $data, 65536, 0)) { print unpack("H*", $data), "\\n" }
`;

export class DatagramListener {
  readonly #process: Background;

  private constructor(process: Background) {
    this.#process = process;
  }

  /** On a path, or with "@" an abstract name. */
  static async on(name: string): Promise<DatagramListener> {
    const process = new Background(["perl", "-e", LISTENER, name]);
    await process.writes(/^listening\n/);
    return new DatagramListener(process);
  }

  get messages(): string[] {
    const lines = this.#process.stdout.split("\n").slice(1, -1);
    return lines.map((line) => Buffer.from(line, "hex").toString());
  }

  async hears(pattern: RegExp, timeoutMs?: number): Promise<string> {
    const found = () => this.messages.find((message) => pattern.test(message));
    return await until(found, `a datagram like ${pattern}`, timeoutMs);
  }

  async close(): Promise<void> {
    await this.#process.stop("SIGKILL");
  }
}
