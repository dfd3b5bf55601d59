import { openPool, query } from '../databases.js'
import { charge, type Contender } from './contender.js'
import { chargedByTables, createTables } from './hand-written.js'

/** A charge in one statement: it updates the account if the balance covers it, and writes the usage record. */
export const guardedStatement = `
  with charged as (
    update accounts set used = used + $2 where user_id = $1 and total - used >= $2 returning user_id
  )
  insert into usage_records (user_id, credits, operation, metadata)
  select user_id, $2, $3, $4 from charged returning id`

/** (c) One guarded statement for each call. */
export const guarded: Contender = {
  name: 'one guarded statement',
  async open (connectionString) {
    await query(connectionString, createTables)
    await query(connectionString, 'vacuum analyze')
    const pool = openPool(connectionString)
    return {
      async call (userId) {
        const { rowCount } = await pool.query({
          name: 'charge', text: guardedStatement, values: [userId, charge.credits, charge.operation, charge.metadata]
        })
        if (rowCount !== 1) throw new Error('Insufficient credits')
      },
      charged: () => chargedByTables(connectionString),
      close: () => pool.end()
    }
  }
}
