// SPDX-License-Identifier: Apache-2.0
import { LasthopError } from "../errors.ts";
import { loadFfi } from "../ffi/index.ts";
import { libc } from "../libc/index.ts";
import { bpfError } from "./error.ts";
import { type BpfMap, MAP_TYPE } from "./map.ts";

const BUSY = 1 << 31;
const DISCARDED = 1 << 30;
const HEADER_BYTES = 8;

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const _SC_PAGESIZE = 30;

/** One mapped piece of memory. */
class Mapping {
  readonly view: Buffer;
  readonly #address: bigint;
  readonly #length: number;

  constructor(map: BpfMap, offset: number, length: number, protection: number) {
    const mmap = libc().function("mmap", "pointer", ["pointer", "size_t", "i32", "i32", "i32", "i64"]);
    const address = mmap(null, length, protection, MAP_SHARED, map.fd, offset);
    if (address === MAP_FAILED) throw bpfError(`cannot map the ring buffer ${map.label}`, loadFfi().errno());
    this.#address = address;
    this.#length = length;
    this.view = loadFfi().view(address, length);
  }

  unmap(): void {
    libc().function("munmap", "i32", ["pointer", "size_t"])(this.#address, this.#length);
  }
}

/**
 * The reading end of a BPF ring buffer, read from its memory: no call into C for a record, no callback.
 * One reader a ring buffer. The map must stay open as long as this.
 */
export class RingBuffer {
  readonly #map: BpfMap;
  readonly #mask: number;
  #open = true;
  readonly #consumer: Mapping;
  readonly #producer: Mapping;
  /** Where we are, and where the programs are: byte counts that only grow. */
  readonly #consumerPosition: BigInt64Array;
  readonly #producerPosition: BigInt64Array;
  /** The data twice in a row, so that no record is cut. */
  readonly #data: Buffer;
  readonly #headers: Int32Array;
  #wake: (() => void) | undefined;

  /** Maps it into memory. Throws E_BPF. (mmap) */
  constructor(map: BpfMap) {
    if (map.type !== MAP_TYPE.RINGBUF) {
      throw new LasthopError("E_INTERNAL", `the map ${map.label} is not a ring buffer (type ${map.type})`);
    }
    this.#map = map;
    this.#mask = map.maxEntries - 1;
    const page = libc().function("sysconf", "i64", ["i32"])(_SC_PAGESIZE);
    this.#consumer = new Mapping(map, 0, page, PROT_READ | PROT_WRITE);
    try {
      this.#producer = new Mapping(map, page, page + 2 * map.maxEntries, PROT_READ);
    } catch (error) {
      this.#consumer.unmap();
      throw error;
    }
    const [consumer, producer] = [this.#consumer.view, this.#producer.view];
    this.#consumerPosition = new BigInt64Array(consumer.buffer, consumer.byteOffset, 1);
    this.#producerPosition = new BigInt64Array(producer.buffer, producer.byteOffset, 1);
    this.#data = producer.subarray(page);
    this.#headers = new Int32Array(this.#data.buffer, this.#data.byteOffset, this.#data.length / 4);
  }

  /**
   * Hands over the records that are there now, each in a buffer of its own, and returns how many. Stops at a
   * record that a program is still writing. A record counts as read even if `onRecord` throws.
   */
  consume(onRecord: (record: Buffer) => void): number {
    this.#checkOpen();
    // Atomics order these reads after the program's writes; the memory is shared with the kernel.
    const end = Number(Atomics.load(this.#producerPosition, 0));
    let position = Number(Atomics.load(this.#consumerPosition, 0));
    let count = 0;
    while (position < end) {
      const offset = position % (this.#mask + 1);
      const header = Atomics.load(this.#headers, offset / 4);
      if (header & BUSY) break;
      const length = header & ~DISCARDED;
      const start = offset + HEADER_BYTES;
      const record = header & DISCARDED ? undefined : Buffer.from(this.#data.subarray(start, start + length));
      position += Math.ceil((HEADER_BYTES + length) / 8) * 8;
      Atomics.store(this.#consumerPosition, 0, BigInt(position));
      if (record !== undefined) {
        count += 1;
        onRecord(record);
      }
    }
    return count;
  }

  /**
   * Waits for records or for the time to pass; true if there are records to consume. One wait at a time.
   * Closing ends it with false. Throws E_BPF.
   */
  async poll(timeoutMs: number): Promise<boolean> {
    this.#checkOpen();
    if (this.#wake !== undefined)
      throw new LasthopError("E_INTERNAL", `${this.#map.label} is polled already`);
    try {
      return await new Promise<boolean>((resolve, reject) => {
        const finish = (ready: boolean, error?: Error): void => {
          clearTimeout(timer);
          handle.close();
          if (error === undefined) resolve(ready);
          else reject(error);
        };
        const timer = setTimeout(() => finish(false), timeoutMs);
        const handle = loadFfi().poll(this.#map.fd, { readable: true }, (errno) =>
          finish(
            true,
            errno === 0 ? undefined : bpfError(`cannot poll the ring buffer ${this.#map.label}`, errno),
          ),
        );
        this.#wake = () => finish(false);
      });
    } finally {
      this.#wake = undefined;
    }
  }

  /** Unmaps it; the map stays open. A second close does nothing. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#wake?.();
    this.#consumer.unmap();
    this.#producer.unmap();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  // Touching unmapped memory would end the process.
  #checkOpen(): void {
    if (!this.#open)
      throw new LasthopError("E_INTERNAL", `the ring buffer ${this.#map.label} was used after close`);
  }
}
