import { cpus, totalmem } from 'node:os'
import { query } from './databases.js'

/** What was measured on. */
export async function describeMachine (connectionString: string) {
  const [server] = await query(connectionString, `
    select current_setting('server_version') as version, current_setting('fsync') as fsync,
      current_setting('synchronous_commit') as synchronous_commit`)
  return {
    cpu: cpus()[0]!.model,
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    postgresql: server.version as string,
    fsync: server.fsync as string,
    synchronous_commit: server.synchronous_commit as string
  }
}
