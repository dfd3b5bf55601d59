import { CallQueue } from '../../src/ledger/posting/call-queue.js'
import type { QueuedCall } from '../../src/ledger/posting/lane.js'
import { ledgerScripts } from '../ledger-scripts.js'
import { openPool, PLENTY, query } from '../databases.js'
import { charge, type Contender } from './contender.js'

const append = `
  insert into ceiling (user_id, seq, kind, credits_used, operation, metadata, created_at, total_after, used_after, held_after)
  select user_id, seq, 'deduct', credits, operation, metadata, now(), ${PLENTY}, seq, 0
  from unnest($1::varchar[], $2::bigint[], $3::bigint[], $4::varchar[], $5::jsonb[])
    as c (user_id, seq, credits, operation, metadata)
  returning id`

/** (f) The library's own queue and batches, but they only append usage records: no account is locked or checked. */
export const ceiling: Contender = {
  name: 'ceiling: only append',
  async open (connectionString) {
    for (const script of ledgerScripts) await query(connectionString, script)
    await query(connectionString, 'create table ceiling (like ai_credit_usage including all)')
    const pool = openPool(connectionString)
    let seq = 0
    const together = async (calls: QueuedCall[]) => {
      const { rows } = await pool.query({
        name: 'append',
        text: append,
        values: [calls.map(({ userId }) => userId), calls.map(() => ++seq), calls.map(() => charge.credits),
          calls.map(() => charge.operation), calls.map(() => JSON.stringify(charge.metadata))]
      })
      return rows
    }
    const queue = new CallQueue<QueuedCall, unknown>(
      { together, alone: async call => (await together([call]))[0] }, { maxQueue: Infinity, patient: 1, reserve: 0 })
    return {
      call: userId => queue.add({ userId, deadline: performance.now() + 5000 }),
      async charged () {
        const [row] = await query(connectionString, 'select coalesce(sum(credits_used), 0) as credits from ceiling')
        return [Number(row.credits)]
      },
      close: () => pool.end()
    }
  }
}
