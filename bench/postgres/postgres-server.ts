import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { freePort } from './free-port.js'
import { copyFolder, runBinary, spawnServer } from './run-binary.js'

const patience = 30_000
// Errors that go away: another process has taken the port; backends of a killed server have not ended yet.
const passing = /could not bind|shared memory block|lock file/

export type Settings = Record<string, string | number | boolean>
export type StopMode = 'fast' | 'immediate'

/** A PostgreSQL server that can be stopped, killed and restarted. */
export class PostgresServer {
  readonly folder: string
  readonly dataDir: string
  port = 0
  readonly #settings: Settings
  #process: ChildProcess | undefined

  /** Makes a data directory in a folder that already holds the binaries, and starts a server on it. */
  static async create (folder: string, settings: Settings): Promise<PostgresServer> {
    const server = new PostgresServer(folder, settings)
    const locale = ['--encoding=UTF8', '--locale=C']
    await runBinary(folder, 'initdb', ['-D', server.dataDir, '-U', 'postgres', '--auth=trust', '--no-sync', ...locale])
    await server.#start(freePort)
    return server
  }

  /**
   * Starts a standby on a copy of a stopped server's data, in a folder that already holds the binaries. It follows that
   * server.
   */
  static async createStandby (folder: string, primary: PostgresServer, settings: Settings): Promise<PostgresServer> {
    const server = new PostgresServer(folder, { ...settings, primary_conninfo: primary.#conninfo(basename(folder)) })
    await copyFolder(primary.dataDir, server.dataDir)
    await writeFile(join(server.dataDir, 'standby.signal'), '')
    await server.#start(freePort)
    return server
  }

  private constructor (folder: string, settings: Settings) {
    this.folder = folder
    this.dataDir = join(folder, 'data')
    // The name distinguishes this server from another one that has won the race for the port.
    this.#settings = { ...settings, cluster_name: basename(folder) }
  }

  /** The superuser's connection string, to the database `postgres`. */
  get connectionString (): string {
    return urlOf(this.port)
  }

  get pid (): number | undefined {
    return this.#process?.pid
  }

  /** Returns the log that the server has written since its latest start. */
  log (): Promise<string> {
    return readFile(join(this.folder, 'server.log'), 'utf8')
  }

  /** Shuts the server down, or crashes it (`immediate`), and keeps its data for `restart`. */
  async halt (mode: StopMode = 'fast'): Promise<void> {
    if (this.#hasExited || !existsSync(this.#lockFile)) return
    await runBinary(this.folder, 'pg_ctl', ['stop', '-D', this.dataDir, '-m', mode])
  }

  /** Kills the server's main process. Its backends end by themselves; busy ones end after their statement. */
  async kill (): Promise<void> {
    const child = this.#process
    if (child === undefined || this.#hasExited) return
    child.ref()
    child.kill('SIGKILL')
    await once(child, 'exit')
  }

  /** Shuts the server down if it still runs, and starts it again on the same data and port. */
  async restart (): Promise<void> {
    await this.halt()
    await this.#start()
  }

  /** Stops the server and removes its folder. */
  async stop (mode: StopMode = 'fast'): Promise<void> {
    // A killed server leaves a segment of shared memory. Only its next start finds and removes it.
    if (this.#hasExited && existsSync(this.#lockFile)) await this.#start().catch(() => {})
    await this.halt(mode)
    await rm(this.folder, { recursive: true, force: true })
  }

  #conninfo (name: string): string {
    return `host=127.0.0.1 port=${this.port} user=postgres sslmode=disable application_name=${name}`
  }

  get #lockFile (): string {
    return join(this.dataDir, 'postmaster.pid')
  }

  get #hasExited (): boolean {
    return this.#process?.exitCode !== null || this.#process.signalCode !== null
  }

  async #start (choosePort = async () => this.port): Promise<void> {
    const deadline = Date.now() + patience
    for (;;) {
      this.port = await choosePort()
      try {
        return await this.#launch(deadline)
      } catch (error) {
        if (Date.now() > deadline || !passing.test(String(error))) throw error
        await sleep(50)
      }
    }
  }

  async #launch (deadline: number): Promise<void> {
    const settings = Object.entries({ ...this.#settings, port: this.port })
    const args = settings.flatMap(([name, value]) => ['-c', `${name}=${value}`])
    this.#process = await spawnServer(this.folder, ['-D', this.dataDir, ...args])
    while (!await this.#isReady()) {
      if (Date.now() > deadline) await this.kill()
      if (this.#hasExited) throw new Error(`PostgreSQL did not start:\n${await this.log()}`)
      await sleep(10)
    }
  }

  async #isReady (): Promise<boolean> {
    const client = new pg.Client({ connectionString: this.connectionString, connectionTimeoutMillis: 1000 })
    client.on('error', () => {})
    try {
      await client.connect()
      const { rows } = await client.query('show cluster_name')
      return rows[0].cluster_name === basename(this.folder)
    } catch {
      return false
    } finally {
      await client.end().catch(() => {})
    }
  }
}

/** Returns the superuser's connection string of the server at this port. */
export function urlOf (port: number): string {
  return `postgresql://postgres@127.0.0.1:${port}/postgres?sslmode=disable`
}
