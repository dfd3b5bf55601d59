import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Test } from 'tap'
import { cluster } from '../helper/citus.js'
import { query, type Address, type Cluster } from '../../bench/postgres/cluster.js'
import { createLedgerDatabase } from '../helper/database.js'
import { Site } from '../faults/crashes.js'
import { prepareProcesses, type Starter } from '../faults/processes.js'

/** Gateways on a Citus cluster, whose nodes crash. Each crash ends all sessions of that node, in whatever database. */
export class ClusterSite extends Site {
  private constructor (readonly cluster: Cluster, connectionString: string, starter: Starter, folder: string) {
    super(connectionString, starter, folder)
  }

  static async open (t: Test): Promise<ClusterSite> {
    const connectionString = await createLedgerDatabase(t)
    return await new ClusterSite(await cluster(), connectionString, await prepareProcesses(t), t.testdirName).start()
  }

  /** Makes the coordinator crash, and waits until it has recovered. */
  async crashCoordinator (): Promise<void> {
    await this.#crash(this.cluster.nodes[0]!)
  }

  /** Makes one of the workers crash, and waits until it has recovered. */
  async crashWorker (): Promise<void> {
    await this.#crash(this.random.pick(this.cluster.nodes.slice(1)))
  }

  // What a crash has left prepared locks rows. Citus' daemon ends it, once a minute; this does so at once, like the daemon.
  override async settled (): Promise<void> {
    const undecided = async () => await Promise.all(this.cluster.nodes.map(node =>
      query(this.#on(node), 'select from pg_prepared_xacts where database = current_database()')))
    while ((await undecided()).flat().length > 0) {
      await query(this.connectionString, 'select recover_prepared_transactions()')
      await sleep(20)
    }
  }

  // A process of a server that is killed makes the server end all others and recover. The server kills it by itself: a superuser
  // may run programs there.
  async #crash (node: Address): Promise<void> {
    const url = this.#on(node)
    const [{ started }] = await query(url, startOfServer)
    try {
      await query(url, `
        do $$
        declare
          victim integer := (select pid from pg_stat_activity where datname = current_database() and backend_type = 'client backend'
            order by pid = pg_backend_pid(), random() limit 1);
        begin
          execute format('copy (select 1) to program %L', 'kill -9 ' || victim);
          perform pg_sleep(30);
        end
        $$`)
    } catch (error) {
      if (error instanceof pg.DatabaseError && !error.code!.startsWith('57P')) throw error // not of the crash
    }
    this.kills++
    for (;;) {
      const [row] = await query(url, startOfServer).catch(() => [])
      if (row !== undefined && row.started !== started) return
      await sleep(20)
    }
  }

  #on (node: Address): string {
    return this.cluster.at(new URL(this.connectionString).pathname.slice(1), node)
  }
}

// The checkpointer starts anew with each recovery.
const startOfServer = "select backend_start::text as started from pg_stat_activity where backend_type = 'checkpointer'"
