import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { freePort } from '../postgres/free-port.js'
import { temporaryFolder } from '../postgres/unprivileged.js'

const PATIENCE = 10_000 // milliseconds for the start

/** When Redis syncs its log to the disk: before it replies, or once a second. */
export type Sync = 'always' | 'everysec'

/** A Redis server that the benchmark has started. */
export interface RedisServer {
  port: number
  stop (): Promise<void>
}

/** Returns the path of redis-server; undefined if it is not installed. */
export function findRedis (): string | undefined {
  return (process.env.PATH ?? '').split(delimiter).map(folder => join(folder, 'redis-server')).find(existsSync)
}

/** Returns the version of redis-server; undefined if it is not installed. */
export function redisVersion (): string | undefined {
  const path = findRedis()
  return path === undefined ? undefined : /v=(\S+)/.exec(execFileSync(path, ['--version'], { encoding: 'utf8' }))?.[1]
}

/** Starts a Redis server that logs each write. Its files are where those of the PostgreSQL servers are. */
export async function startRedis (sync: Sync): Promise<RedisServer> {
  const folder = await mkdtemp(join(temporaryFolder, 'bench-redis-'))
  const deadline = Date.now() + PATIENCE
  for (;;) {
    const port = await freePort()
    const server = spawn(findRedis()!, [
      '--bind', '127.0.0.1', '--port', String(port), '--dir', folder, '--save', '', '--appendonly', 'yes', '--appendfsync', sync
    ], { stdio: 'ignore' })
    const end = () => { server.kill() }
    process.once('exit', end) // also where the benchmark fails
    if (await isReady(server, port, deadline)) {
      return {
        port,
        async stop () {
          process.off('exit', end)
          await stop(server)
          await rm(folder, { recursive: true })
        }
      }
    }
    process.off('exit', end)
    await stop(server)
    // Another process may have taken the port.
    if (Date.now() > deadline) throw new Error('redis-server did not start')
  }
}

async function isReady (server: ChildProcess, port: number, deadline: number) {
  while (server.exitCode === null && Date.now() < deadline) {
    const client = new Redis(port, { lazyConnect: true, retryStrategy: null })
    client.on('error', () => {})
    try {
      await client.connect()
      // Another server may have the port.
      if ((await client.info('server')).includes(`process_id:${server.pid}\r`)) return true
    } catch {
      await sleep(20)
    } finally {
      client.disconnect()
    }
  }
  return false
}

async function stop (server: ChildProcess) {
  if (server.exitCode !== null || server.signalCode !== null) return
  server.kill()
  await once(server, 'exit')
}
