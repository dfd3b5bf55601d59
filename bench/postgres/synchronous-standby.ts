import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { startStandby, type PostgresServer } from './postgres.js'
import type { Settings } from './postgres-server.js'

/** Starts a standby of a server, which from then on commits only what the standby has on its disk. The server is restarted. */
export async function startSynchronousStandby (primary: PostgresServer, settings: Settings): Promise<PostgresServer> {
  await primary.halt()
  const standby = await startStandby(primary, { settings })
  await primary.restart()
  const client = new pg.Client(primary.connectionString)
  await client.connect()
  await client.query(`alter system set synchronous_standby_names to '"${basename(standby.folder)}"'`)
  await client.query('select pg_reload_conf()')
  while ((await client.query("select from pg_stat_replication where sync_state = 'sync'")).rowCount === 0) await sleep(20)
  await client.end()
  return standby
}
