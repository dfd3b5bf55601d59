/**
 * Runs `work` in one transaction and commits it, or else rolls everything back and throws.
 *
 * Instead of `fastify.pg.transact`, which resolves even when the database has answered COMMIT with a rollback.
 *
 * @template T
 * @param {import('@fastify/postgres').PostgresDb} pg
 * @param {(client: import('pg').PoolClient) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function inTransaction (pg, work) {
  const client = await pg.connect()
  let lost
  // A connection that breaks between two queries has nobody else to tell, and would end the process.
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
  // The answer is ROLLBACK, and no error, when a query had failed and nobody minded.
  if (command !== 'COMMIT') throw new Error('The transaction was rolled back')
  return result
}
