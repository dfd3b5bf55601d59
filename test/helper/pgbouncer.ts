import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chown, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { freePort } from '../../bench/postgres/free-port.js'
import { temporaryFolder, unprivileged } from '../../bench/postgres/unprivileged.js'

/**
 * Starts PgBouncer in transaction mode before the server that the connection string names, for all of its databases and as the user
 * named there. Returns the connection string through it; undefined if PgBouncer is not installed.
 */
export async function startPgbouncer (connectionString: string) {
  const folder = await mkdtemp(join(temporaryFolder, 'fastify-ai-credits-pgbouncer-'))
  let bouncer: ChildProcess | undefined
  const stop = async () => {
    if (bouncer?.pid !== undefined && bouncer.exitCode === null && bouncer.kill()) await once(bouncer, 'exit')
    await rm(folder, { recursive: true, force: true })
  }
  try {
    const url = new URL(connectionString)
    const port = await freePort()
    const ini = join(folder, 'pgbouncer.ini')
    await writeFile(ini, configuration(url, port, folder))
    if (unprivileged.uid !== undefined) for (const path of [folder, ini]) await chown(path, unprivileged.uid, unprivileged.gid!)
    bouncer = spawn('pgbouncer', ['-q', ini], { ...unprivileged, stdio: 'ignore' })
    url.host = `127.0.0.1:${port}`
    url.search = '?sslmode=disable'
    if (await started(bouncer)) {
      await answers(url.href)
      return { connectionString: url.href, stop }
    }
    await stop()
  } catch (error) {
    await stop()
    throw error
  }
}

const configuration = ({ hostname, port, username, password }: URL, listenPort: number, folder: string) => `
[databases]
* = host=${hostname} port=${port || 5432} user=${username}${password && ` password=${decodeURIComponent(password)}`}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${listenPort}
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
