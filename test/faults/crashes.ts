import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger } from '../../src/index.js'
import { createPool } from '../helper/database.js'
import { neglect } from '../../bench/neglect.js'
import { startPostgres, type PostgresServer } from '../../bench/postgres/postgres.js'
import type { Orders } from './client-process.js'
import { allowance, makeBudgets } from './load.js'
import { prepareProcesses, type Client, type Gateway, type Starter } from './processes.js'
import { Random } from './random.js'
import { long, seed } from './settings.js'
import { verify, type Findings } from './verify.js'

const GATEWAYS = long ? 3 : 2
const CONCURRENCY = 32
const CALLS = long ? 600 : 150
const NEGLECTED = 150 // lapsed holds, and as many expired grants, of the busiest charged account
const PER_ROUND = 60_000
const STARTS = 20 // starts of a gateway; each takes a second

/** Gateways under the load of a client. A process that is killed starts again at once. */
export class Site {
  readonly random = new Random(seed)
  gateways: Gateway[] = []
  client: Client | undefined
  kills = 0
  readonly #starter: Starter
  readonly #folder: string
  #orders: Orders | undefined

  protected constructor (readonly connectionString: string, starter: Starter, folder: string) {
    this.#starter = starter
    this.#folder = folder
  }

  /** Starts the gateways. */
  protected async start (): Promise<this> {
    this.gateways = await Promise.all(Array.from({ length: GATEWAYS }, () => this.#startGateway()))
    return this
  }

  /** Waits until nothing is left to be done about what was killed. */
  async settled (): Promise<void> {}

  /** Begins a round, and returns the path of its journal. */
  begin (round: string): string {
    const journal = join(this.#folder, `${round}.jsonl`)
    const seed = this.random.whole(0, 2 ** 31)
    this.#orders = { journal, round, seed, calls: CALLS, concurrency: CONCURRENCY, gateways: this.#urls }
    this.client = this.#starter.client(this.#orders)
    return journal
  }

  /** Resolves at a random moment of the round's load. */
  async moment (): Promise<void> {
    await this.client!.answered(this.random.whole(1, Math.floor(CALLS * 0.9)))
    await sleep(this.random.whole(0, 3))
  }

  /** Kills a gateway, and starts another one in its place. */
  async killGateway (): Promise<void> {
    const index = this.random.whole(0, GATEWAYS - 1)
    await this.gateways[index]!.kill()
    this.kills++
    this.gateways[index] = await this.#startGateway()
    this.client!.tell(this.#urls)
  }

  /** Kills the client, and starts its successor. */
  async killClient (): Promise<void> {
    await this.client!.kill()
    this.kills++
    this.client = this.#starter.client({ ...this.#orders!, gateways: this.#urls })
  }

  /** Returns what is wrong with the gateways: one does not run, or has connections that are not idle. */
  async problems (): Promise<string[]> {
    if (this.gateways.some(({ running }) => !running)) return ['a gateway has ended']
    const problems = await Promise.all(this.gateways.map(async gateway => {
      for (let attempt = 0; ; attempt++) {
        const { totalCount, idleCount, waitingCount } = await gateway.connections()
        if (idleCount === totalCount && waitingCount === 0) return []
        if (attempt === 100) return [`a gateway has lost connections: ${idleCount} of ${totalCount}, ${waitingCount} waiting`]
        await sleep(100)
      }
    }))
    return problems.flat()
  }

  get #urls (): string[] {
    return this.gateways.map(({ url }) => url)
  }

  // A gateway that cannot reach its server at start ends. This starts it again, like a process manager.
  async #startGateway (): Promise<Gateway> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#starter.gateway(this.connectionString)
      } catch (error) {
        if (attempt === STARTS) throw error
      }
    }
  }
}

/** Gateways on their own server. */
export class ServerSite extends Site {
  private constructor (readonly server: PostgresServer, starter: Starter, folder: string) {
    super(server.connectionString, starter, folder)
  }

  static async open (t: Test): Promise<ServerSite> {
    // With fsync, like a real server.
    const server = await startPostgres({ settings: { fsync: 'on' } })
    t.teardown(() => server.stop('immediate'))
    return await new ServerSite(server, await prepareProcesses(t), t.testdirName).start()
  }

  /** Kills one of the server's processes. The server then ends all others and recovers. */
  async killBackend (): Promise<void> {
    const processes = await this.#query(`
      select pid from pg_stat_activity where pid <> pg_backend_pid()
      and backend_type in ('client backend', 'walwriter', 'checkpointer', 'background writer')`)
    process.kill(this.random.pick(processes.map(({ pid }) => pid)), 'SIGKILL')
    this.kills++
    await this.#untilAnswering()
  }

  /** Stops the server without a checkpoint, and starts it again. */
  async stopServer (): Promise<void> {
    await this.server.halt('immediate')
    this.kills++
    await sleep(this.random.whole(0, 300))
    await this.server.restart()
  }

  /** Kills the server's main process, and starts it again. */
  async killServer (): Promise<void> {
    await this.server.kill()
    this.kills++
    await sleep(this.random.whole(0, 300))
    await this.server.restart()
  }

  async #query (text: string): Promise<any[]> {
    const client = new pg.Client({ connectionString: this.server.connectionString })
    client.on('error', () => {})
    await client.connect()
    try {
      return (await client.query(text)).rows
    } finally {
      await client.end()
    }
  }

  // For a moment after the kill the server may still answer normally.
  async #untilAnswering () {
    await sleep(50)
    for (;;) {
      try {
        await this.#query('select')
        return
      } catch {
        await sleep(20)
      }
    }
  }
}

/** The means by which a test inspects the ledger. */
interface Books {
  pool: pg.Pool
  ledger: Ledger
}

type Kill<AtSite extends Site> = (site: AtSite, round: number) => Promise<void>

/** Declares a test of several rounds. In each round `kill` kills something under load, once or several times. */
export function crashTest (name: string, rounds: number, kill: Kill<ServerSite>): void {
  crashTestAt(ServerSite.open, name, rounds, kill)
}

/** Declares such a test at a site of another kind. */
export function crashTestAt<AtSite extends Site> (
  open: (t: Test) => Promise<AtSite>, name: string, rounds: number, kill: Kill<AtSite>
): void {
  const timeout = 60_000 + rounds * PER_ROUND
  t.setTimeout(timeout)
  t.comment(`timeout=${timeout}`) // sets the limit of the test runner
  t.test(`${name} (FAULTS_SEED=${seed})`, async t => {
    const site = await open(t)
    const books = openBooks(t, site)
    const sum: Findings = { calls: 0, accepted: 0, refused: 0, repeated: 0, late: 0, overBudget: 0, problems: [] }
    for (let round = 0; round < rounds && sum.problems.length === 0; round++) {
      add(sum, await run(site, books, round, kill))
      if (long) t.comment(`round ${round}: ${JSON.stringify(sum)}`)
    }
    t.strictSame(sum.problems.slice(0, 10), [])
    t.match(await books.ledger.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
    const { problems: _problems, ...figures } = sum
    t.comment(`${name}: ${JSON.stringify({ seed, rounds, kills: site.kills, ...figures })}`)
  })
}

async function run<AtSite extends Site> (site: AtSite, { pool, ledger }: Books, round: number, kill: Kill<AtSite>) {
  const name = `round ${round}`
  await neglect(ledger, pool, [`charged ${name} user 0`], NEGLECTED)
  await makeBudgets(ledger, name)
  const journal = site.begin(name)
  await Promise.all([kill(site, round), untilDone(site)])
  await site.client!.kill()
  await site.settled()
  const problems = await site.problems()
  const findings = await verify(journal, site.gateways[0]!.url, pool, ledger, site.random)
  return { ...findings, problems: [...problems, ...findings.problems] }
}

// Waits until the client is done, also if it was killed and has a successor.
async function untilDone (site: Site): Promise<void> {
  for (;;) {
    const { client } = site
    try {
      await client!.done
      return
    } catch (error) {
      while (site.client === client) await sleep(5) // waits until its successor has started
    }
  }
}

function openBooks (t: Test, { connectionString }: Site): Books {
  const pool = createPool(t, connectionString)
  return { pool, ledger: createLedger(pool, { allowance, timeout: 60_000 }) }
}

function add (sum: Findings, { problems, ...figures }: Findings): void {
  for (const [name, figure] of Object.entries(figures)) sum[name as 'calls'] += figure
  sum.problems.push(...problems)
}
