import { createHash, randomBytes } from 'node:crypto'

/**
 * Identifies users by an API key, `Authorization: Bearer …`. Returns two functions: `identify`, the option for
 * fastify-ai-credits, which looks up the key of each request; and `issueKey`, which makes a key for a user.
 *
 * @param {import('fastify').FastifyInstance} app with @fastify/postgres
 */
export async function identifyByApiKey (app) {
  // The table keeps only hashes, so nobody who reads it can use a key. Keys are random, so a plain hash is enough.
  await app.pg.query('create table if not exists api_keys (hash bytea primary key, user_id varchar not null)')

  return {
    async identify ({ headers: { authorization = '' } }) {
      const [, key] = /^Bearer (\S+)$/.exec(authorization) ?? []
      if (key === undefined) return null
      const { rows: [owner] } = await app.pg.query('select user_id from api_keys where hash = $1', [hash(key)])
      return owner?.user_id
    },

    async issueKey (userId) {
      const key = randomBytes(32).toString('base64url')
      await app.pg.query('insert into api_keys (hash, user_id) values ($1, $2)', [hash(key), userId])
      return key
    }
  }
}

function hash (key) {
  return createHash('sha256').update(key).digest()
}
