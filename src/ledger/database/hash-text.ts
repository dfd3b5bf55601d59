const encoder = new TextEncoder()

const BLOCK = 12 // bytes that are mixed at a time

let bytes = new Uint8Array(0)
let words = new DataView(bytes.buffer)

/**
 * Returns the hash of a text that PostgreSQL's `hashtext` returns for it, in a database with the encoding UTF8 and with a
 * deterministic collation. Citus finds the shard of a text by this hash.
 *
 * It is lookup3 by Bob Jenkins (lookup3.c, in the public domain), in the form of hash_bytes in PostgreSQL's hashfn.c, on a
 * little-endian server.
 */
export function hashText (text: string): number {
  const length = encode(text)
  let a = (0x9e3779b9 + 3923095 + length) | 0
  let b = a
  let c = a
  let place = 0
  for (; place + BLOCK <= length; place += BLOCK) {
    a += words.getInt32(place, true)
    b += words.getInt32(place + 4, true)
    c += words.getInt32(place + 8, true)
    a = (a - c) ^ rotate(c, 4)
    c = (c + b) | 0
    b = (b - a) ^ rotate(a, 6)
    a = (a + c) | 0
    c = (c - b) ^ rotate(b, 8)
    b = (b + a) | 0
    a = (a - c) ^ rotate(c, 16)
    c = (c + b) | 0
    b = (b - a) ^ rotate(a, 19)
    a = (a + c) | 0
    c = (c - b) ^ rotate(b, 4)
    b = (b + a) | 0
  }
  a = (a + words.getInt32(place, true)) | 0
  b = (b + words.getInt32(place + 4, true)) | 0
  c = (c + (words.getInt32(place + 8, true) << 8)) | 0 // of the last bytes there are 11 at most
  c = ((c ^ b) - rotate(b, 14)) | 0
  a = ((a ^ c) - rotate(c, 11)) | 0
  b = ((b ^ a) - rotate(a, 25)) | 0
  c = ((c ^ b) - rotate(b, 16)) | 0
  a = ((a ^ c) - rotate(c, 4)) | 0
  b = ((b ^ a) - rotate(a, 14)) | 0
  return ((c ^ b) - rotate(b, 24)) | 0
}

// Writes the text as UTF-8 into `bytes`, with zeros for the rest of the last block. Returns the number of its bytes.
function encode (text: string) {
  const space = text.length * 3 + BLOCK
  if (bytes.length < space) {
    bytes = new Uint8Array(space)
    words = new DataView(bytes.buffer)
  }
  const { written } = encoder.encodeInto(text, bytes)
  bytes.fill(0, written, written + BLOCK)
  return written
}

function rotate (word: number, bits: number) {
  return (word << bits) | (word >>> (32 - bits))
}
