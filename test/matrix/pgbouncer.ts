import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chown, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { freePort } from '../../bench/postgres/free-port.js'
import { startPostgres, type PostgresServer } from '../../bench/postgres/postgres.js'
import { temporaryFolder, unprivileged } from '../../bench/postgres/unprivileged.js'

/** Starts PostgreSQL of this version with PgBouncer before it, in transaction mode; undefined if it is not installed. */
export async function startPgbouncer (version: string) {
  const server = await startPostgres({ version })
  const folder = await mkdtemp(join(temporaryFolder, 'fastify-ai-credits-pgbouncer-'))
  let bouncer: ChildProcess | undefined
  const stop = async () => {
    if (bouncer?.pid !== undefined && bouncer.exitCode === null && bouncer.kill()) await once(bouncer, 'exit')
    await rm(folder, { recursive: true, force: true })
    await server.stop()
  }
  try {
    const port = await freePort()
    const ini = join(folder, 'pgbouncer.ini')
    await writeFile(ini, configuration(server, port, folder))
    if (unprivileged.uid !== undefined) for (const path of [folder, ini]) await chown(path, unprivileged.uid, unprivileged.gid!)
    bouncer = spawn('pgbouncer', ['-q', ini], { ...unprivileged, stdio: 'ignore' })
    const connectionString = `postgresql://postgres@127.0.0.1:${port}/postgres?sslmode=disable`
    if (await started(bouncer)) {
      await answers(connectionString)
      return { connectionString, stop }
    }
    await stop()
  } catch (error) {
    await stop()
    throw error
  }
}

const configuration = (server: PostgresServer, port: number, folder: string) => `
[databases]
* = host=127.0.0.1 port=${server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 500
default_pool_size = 10
server_idle_timeout = 5
ignore_startup_parameters = extra_float_digits
logfile = ${join(folder, 'pgbouncer.log')}
`

async function started (child: ChildProcess) {
  return await once(child, 'spawn').then(() => true, () => false)
}

async function answers (connectionString: string) {
  for (let attempt = 0; ; attempt++) {
    const client = new pg.Client({ connectionString })
    client.on('error', () => {})
    try {
      await client.connect()
      await client.query('select')
      return
    } catch (error) {
      if (attempt === 100) throw error
      await sleep(50)
    } finally {
      await client.end().catch(() => {})
    }
  }
}
