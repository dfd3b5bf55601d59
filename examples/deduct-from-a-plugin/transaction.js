/**
 * Runs `work` in one transaction, commits it, and returns what `work` returned. If anything fails, rolls back and throws.
 *
 * Use it instead of `fastify.pg.transact`, which resolves even if the database answers COMMIT with a rollback.
 *
 * @template T
 * @param {import('@fastify/postgres').PostgresDb} pg
 * @param {(client: import('pg').PoolClient) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function inTransaction (pg, work) {
  const client = await pg.connect()
  let lost
  // If the connection breaks between two queries, it emits `error`. Without a listener that would end the process.
  const onError = error => { lost = error }
  client.on('error', onError)
  return commit(client, work)
    .catch(async error => {
      await client.query('ROLLBACK').catch(onError)
      throw error
    })
    .finally(() => {
      client.off('error', onError)
      client.release(lost)
    })
}

async function commit (client, work) {
  await client.query('BEGIN')
  const result = await work(client)
  const { command } = await client.query('COMMIT')
  // If `work` ignored the error of a query, the database answers ROLLBACK here, and reports no error.
  if (command !== 'COMMIT') throw new Error('The transaction was rolled back')
  return result
}
