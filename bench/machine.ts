import { cpus, totalmem } from 'node:os'
import { query } from './databases.js'
import { redisVersion } from './redis/redis-server.js'

/** Describes the machine, Node.js, the PostgreSQL server that the benchmark runs on, and Redis where it is installed. */
export async function describeMachine (connectionString: string) {
  const [server] = await query(connectionString, `
    select current_setting('server_version') as version, current_setting('fsync') as fsync,
      current_setting('synchronous_commit') as synchronous_commit`)
  const redis = redisVersion()
  return {
    cpu: cpus()[0]!.model,
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    postgresql: server.version as string,
    ...redis !== undefined && { redis },
    fsync: server.fsync as string,
    synchronous_commit: server.synchronous_commit as string
  }
}
