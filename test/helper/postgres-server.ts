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
// A port taken by others in between; backends of a killed server that have yet to end.
const passing = /could not bind|shared memory block|lock file/

export type Settings = Record<string, string | number | boolean>
export type StopMode = 'fast' | 'immediate'

/** A running PostgreSQL server, and what can happen to it. */
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

  /** Starts a standby on a copy of a stopped server's data, which it will follow; in a folder that holds the binaries. */
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
    // By its name the server is told from another that won the race for the port.
    this.#settings = { ...settings, cluster_name: basename(folder) }
  }

  /** The superuser's connection string, to the database `postgres`. */
  get connectionString (): string {
    return urlOf(this.port)
  }

  get pid (): number | undefined {
    return this.#process?.pid
  }

  /** What the server has written since its latest start. */
  log (): Promise<string> {
    return readFile(join(this.folder, 'server.log'), 'utf8')
  }

  /** Shuts the server down, or crashes it (`immediate`), and keeps its data for `restart`. */
  async halt (mode: StopMode = 'fast'): Promise<void> {
    if (this.#hasExited || !existsSync(this.#lockFile)) return
    await runBinary(this.folder, 'pg_ctl', ['stop', '-D', this.dataDir, '-m', mode])
  }

  /** Kills the server's main process; its backends end by themselves, busy ones after their statement. */
  async kill (): Promise<void> {
    const child = this.#process
    if (child === undefined || this.#hasExited) return
    child.ref()
    child.kill('SIGKILL')
    await once(child, 'exit')
  }

  /** Starts the server again on the same data and port, after a shutdown if it still runs. */
  async restart (): Promise<void> {
    await this.halt()
    await this.#start()
  }

  /** Stops the server for good and removes everything that it had on disk. */
  async stop (mode: StopMode = 'fast'): Promise<void> {
    // A killed server leaves a segment of shared memory, which only its next start finds and removes.
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
    while (!await this.#answers()) {
      if (Date.now() > deadline) await this.kill()
      if (this.#hasExited) throw new Error(`PostgreSQL did not start:\n${await this.log()}`)
      await sleep(10)
    }
  }

  async #answers (): Promise<boolean> {
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

/** The superuser's connection string of the server at this port. */
export function urlOf (port: number): string {
  return `postgresql://postgres@127.0.0.1:${port}/postgres?sslmode=disable`
}
