import type { Queryable } from '../../src/index.js'

/** Adds to daily usage all records that it does not have yet, as postings do after a while. */
export async function sumUp (db: Queryable): Promise<void> {
  await db.query(`
    select ai_credit_sum_up(array_agg(user_id), array_agg(coalesce(summed_seq, seq))) from ai_credits`)
  await db.query('update ai_credits set summed_seq = seq')
}
