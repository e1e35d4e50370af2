// SPDX-License-Identifier: Apache-2.0
// A tap as a hypervisor uses it: each frame with a virtio-net header, in which either side leaves checksums and
// segmentation to the other. Perl, because Node has no ioctl.

import type { Namespace } from "./lab.ts";
import { type Background, until } from "./run.ts";

/** struct virtio_net_hdr: byte order is the machine's, and every machine of ours is little-endian. */
export interface VnetHeader {
  /** The checksum is to be finished from `start` on and written `offset` bytes behind that. */
  checksum?: { start: number; offset: number };
  /** To be cut into segments of so many bytes of payload, each with `headerBytes` of headers. */
  segments?: { family: 4 | 6; bytes: number; headerBytes: number };
}

export interface TapFrame {
  header: VnetHeader;
  frame: Buffer;
}

const HEADER_BYTES = 10;
const NEEDS_CHECKSUM = 1;
const GSO_TCP = { 4: 1, 6: 4 } as const;

const PROGRAM = `
  use strict; $| = 1;
  my ($name, $offloads) = @ARGV;
  open(my $tap, "+<", "/dev/net/tun") or die "/dev/net/tun: $!";
  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
  ioctl($tap, 0x400454ca, pack("a16 S x22", $name, 0x0002 | 0x1000 | 0x4000)) or die "TUNSETIFF: $!";
  ioctl($tap, 0x400454d0, $offloads + 0) or die "TUNSETOFFLOAD: $!";
  print "open\\n";
  my $input = "";
  while (1) {
    my $ready = "";
    vec($ready, fileno($_), 1) = 1 for ($tap, *STDIN);
    select($ready, undef, undef, undef);
    if (vec($ready, fileno($tap), 1) && sysread($tap, my $data, 70000)) { print unpack("H*", $data), "\\n" }
    next unless vec($ready, fileno(STDIN), 1);
    sysread(STDIN, $input, 1 << 20, length $input) or last;
    while ($input =~ s/^(.*)\\n//) {
      defined syswrite($tap, pack("H*", $1)) or die "write: $!";
    }
  }
`;

/** TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 */
const ALL_OFFLOADS = 1 | 2 | 4;

export class VnetTap {
  readonly #process: Background;
  #taken = 1;

  private constructor(process: Background) {
    this.#process = process;
  }

  /** `offloads`: does the reader of the tap take unfinished frames? It may send them in any case. */
  static async open(namespace: Namespace, name: string, offloads: boolean): Promise<VnetTap> {
    const process = namespace.start(["perl", "-e", PROGRAM, name, String(offloads ? ALL_OFFLOADS : 0)]);
    await process.writes(/^open\n/);
    return new VnetTap(process);
  }

  send(frame: Buffer, { checksum, segments }: VnetHeader = {}): void {
    const header = Buffer.alloc(HEADER_BYTES);
    if (checksum) {
      header[0] = NEEDS_CHECKSUM;
      header.writeUInt16LE(checksum.start, 6);
      header.writeUInt16LE(checksum.offset, 8);
    }
    if (segments) {
      header[1] = GSO_TCP[segments.family];
      header.writeUInt16LE(segments.headerBytes, 2);
      header.writeUInt16LE(segments.bytes, 4);
    }
    this.#process.child.stdin.write(`${Buffer.concat([header, frame]).toString("hex")}\n`);
  }

  /** The next frame that the host sent to the guest and `wanted` takes; the others are forgotten. */
  async receive(wanted: (frame: Buffer) => boolean, what: string): Promise<TapFrame> {
    return await until(() => {
      // The last line may not be whole yet.
      const lines = this.#process.stdout.split("\n").slice(0, -1);
      while (this.#taken < lines.length) {
        const found = parse(Buffer.from(lines[this.#taken++]!, "hex"));
        if (wanted(found.frame)) return found;
      }
      if (!this.#process.running) throw new Error(`the tap was closed: ${this.#process.stderr}`);
      return undefined;
    }, what);
  }
}

function parse(data: Buffer): TapFrame {
  const header: VnetHeader = {};
  if (data[0]! & NEEDS_CHECKSUM)
    header.checksum = { start: data.readUInt16LE(6), offset: data.readUInt16LE(8) };
  if (data[1] !== 0) {
    const family = data[1] === GSO_TCP[4] ? 4 : 6;
    header.segments = { family, bytes: data.readUInt16LE(4), headerBytes: data.readUInt16LE(2) };
  }
  return { header, frame: data.subarray(HEADER_BYTES) };
}
