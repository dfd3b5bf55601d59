import { once } from 'node:events'
import { createConnection, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import type { Test } from 'tap'

/**
 * Where a connection is cut: before a statement reaches the server; right after it was sent; when the server has answered,
 * and so committed, but before the client receives anything; or after the client has received half of the answer.
 */
export type Cut = 'before send' | 'after send' | 'before the answer' | 'in the answer'

/** All places where a connection can be cut. */
export const cuts: Cut[] = ['before send', 'after send', 'before the answer', 'in the answer']

interface Pair {
  near: Socket
  far: Socket
  /** Where the connection is cut during the next answer; undefined: not at all. */
  cut?: Cut | undefined
}

interface Trap {
  cut: Cut
  marker: string
  sprung: () => void
}

// ReadyForQuery, which ends every answer: its type and its length; a status byte follows.
const ANSWER_END = Buffer.from([0x5A, 0, 0, 0, 5])

// ErrorResponse: FATAL, 57P01.
const fields = Buffer.from('SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0')
const farewell = Buffer.concat([Buffer.from([0x45, 0, 0, 0, fields.length + 4]), fields])

/** A proxy before a PostgreSQL server that can make connections fail. */
export class Proxy {
  readonly connectionString: string
  readonly #pairs = new Set<Pair>()
  readonly #silent = new Set<Socket>()
  readonly #server: Server
  #target: URL
  readonly #traps: Trap[] = []
  #stalled = false
  #accepts = true
  #endsAtWelcome = false

  static async open (t: Test, target: string): Promise<Proxy> {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const proxy = new Proxy(server, new URL(target))
    t.teardown(() => {
      proxy.cutAll()
      server.close()
    })
    return proxy
  }

  private constructor (server: Server, target: URL) {
    this.#server = server
    this.#target = target
    const url = new URL(target)
    url.host = `127.0.0.1:${(server.address() as AddressInfo).port}`
    this.connectionString = url.href
    server.on('connection', socket => this.#accept(socket))
  }

  /** Cuts the connection of the next statement that contains the marker. Resolves when that has happened. */
  async cutAt (cut: Cut, marker: string): Promise<void> {
    await new Promise<void>(resolve => this.#traps.push({ cut, marker, sprung: resolve }))
  }

  /** Ends the next connection in the server's name as soon as the server has accepted its login. */
  endAtWelcome (): void {
    this.#endsAtWelcome = true
  }

  /** Leads new connections to another server. */
  leadTo (target: string): void {
    this.#target = new URL(target)
  }

  /** Cuts all connections. */
  cutAll (): void {
    for (const { near, far } of this.#pairs) {
      near.destroy()
      far.destroy()
    }
    for (const socket of this.#silent) socket.destroy()
    this.#silent.clear()
  }

  /** Lets nothing pass in either direction, until `flow`. */
  stall (): void {
    this.#stalled = true
    for (const { near, far } of this.#pairs) {
      near.pause()
      far.pause()
    }
  }

  /** Ends `stall`. */
  flow (): void {
    this.#stalled = false
    for (const { near, far } of this.#pairs) {
      near.resume()
      far.resume()
    }
  }

  /** Accepts connections but never answers, on existing connections too. */
  hush (): void {
    this.stall()
    this.#accepts = false
  }

  /** Ends `hush` for new connections. The older ones stay silent and open. */
  speak (): void {
    for (const { near } of this.#pairs) this.#silent.add(near)
    this.#pairs.clear()
    this.#stalled = false
    this.#accepts = true
  }

  #accept (near: Socket): void {
    near.on('error', () => {})
    if (!this.#accepts) {
      this.#silent.add(near)
      near.resume() // otherwise it would not notice the end
      return
    }
    const far = createConnection(Number(this.#target.port), this.#target.hostname)
    const pair: Pair = { near, far }
    this.#pairs.add(pair)
    far.on('error', () => {})
    near.on('data', chunk => this.#toServer(pair, chunk))
    far.on('data', chunk => this.#toClient(pair, chunk))
    for (const [one, other] of [[near, far], [far, near]] as const) {
      one.on('close', () => {
        other.destroy()
        this.#pairs.delete(pair)
      })
    }
    if (this.#stalled) this.stall()
  }

  // pg writes a statement and its parameters at once, so they arrive in one chunk.
  #toServer (pair: Pair, chunk: Buffer): void {
    const index = this.#traps.findIndex(({ marker }) => chunk.includes(marker))
    if (index < 0) {
      pair.far.write(chunk)
      return
    }
    const [trap] = this.#traps.splice(index, 1)
    pair.cut = trap!.cut
    if (pair.cut === 'before send') this.#cut(pair)
    else pair.far.write(chunk, () => { if (pair.cut === 'after send') this.#cut(pair) })
    trap!.sprung()
  }

  #toClient (pair: Pair, chunk: Buffer): void {
    if (this.#endsAtWelcome && chunk.includes(ANSWER_END)) {
      this.#endsAtWelcome = false
      pair.near.write(Buffer.concat([chunk, farewell]), () => this.#cut(pair))
      return
    }
    if (pair.cut === undefined) {
      pair.near.write(chunk)
      return
    }
    if (!chunk.includes(ANSWER_END)) return // the answer is not complete, so nothing of it is passed on
    if (pair.cut === 'in the answer') pair.near.write(chunk.subarray(0, chunk.length / 2), () => this.#cut(pair))
    else this.#cut(pair)
  }

  #cut ({ near, far }: Pair): void {
    near.destroy()
    far.destroy()
  }
}
