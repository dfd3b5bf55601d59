import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { Test } from 'tap'
import { compile, plainEnvironment } from '../helper/processes.js'
import type { Orders } from './client-process.js'

/** Starts the processes of a test. They end with the test. */
export interface Starter {
  gateway (connectionString: string): Promise<Gateway>
  client (orders: Orders): Client
}

/** Compiles the gateway and the client, once for all of their processes. */
export async function prepareProcesses (t: Test): Promise<Starter> {
  const [gatewayScript, clientScript] = await compile(t.testdir(),
    new URL('gateway-process.ts', import.meta.url), new URL('client-process.ts', import.meta.url))
  const start = (script: string, argument: string) => {
    const child = fork(script, [argument], { execArgv: [], env: plainEnvironment() })
    t.teardown(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill('SIGKILL')
      await once(child, 'exit')
    })
    return child
  }
  return {
    async gateway (connectionString) {
      const child = start(gatewayScript!, connectionString)
      const { url } = await answerOf(child)
      return new Gateway(child, url)
    },
    client: orders => new Client(start(clientScript!, JSON.stringify(orders)))
  }
}

abstract class Process {
  constructor (protected readonly child: ChildProcess) {}

  /** Whether the process still runs. */
  get running (): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  async kill (): Promise<void> {
    if (!this.running) return
    this.child.kill('SIGKILL')
    await once(this.child, 'exit')
  }
}

/** A process with a gateway that listens. */
export class Gateway extends Process {
  constructor (child: ChildProcess, readonly url: string) {
    super(child)
  }

  /** Returns the counts of its pool. */
  async connections (): Promise<{ totalCount: number, idleCount: number, waitingCount: number }> {
    this.child.send({})
    return (await answerOf(this.child)).connections
  }
}

/** A process with a client. */
export class Client extends Process {
  readonly #listeners: Array<(answered: number) => void> = []
  /** Resolves when all calls have a reply; rejects if the process ends before. */
  readonly done: Promise<void>

  constructor (child: ChildProcess) {
    super(child)
    this.done = new Promise((resolve, reject) => {
      child.on('message', ({ done, answered }: { done?: true, answered?: number }) => {
        if (done) resolve()
        else for (const listener of this.#listeners) listener(answered!)
      })
      child.on('exit', (code, signal) => reject(new Error(`The client ended: ${code ?? signal}`)))
    })
    this.done.catch(() => {}) // not unhandled: callers wait for it later
  }

  /** Resolves when that many calls, or all, have a reply, or when the client has ended. */
  async answered (count: number): Promise<void> {
    const reached = new Promise<void>(resolve => {
      this.#listeners.push(answered => { if (answered >= count) resolve() })
    })
    await Promise.race([reached, this.done.catch(() => {})])
  }

  /** Sends the client the current URLs of the gateways. */
  tell (gateways: string[]): void {
    if (this.child.connected) this.child.send({ gateways }, () => {}) // the client may have just ended
  }
}

async function answerOf (child: ChildProcess): Promise<any> {
  const ended = once(child, 'exit').then(([code, signal]) => { throw new Error(`A gateway ended: ${code ?? signal}`) })
  const [answer] = await Promise.race([once(child, 'message'), ended])
  return answer
}
