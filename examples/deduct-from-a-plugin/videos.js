import fp from 'fastify-plugin'
import { inTransaction } from './transaction.js'

const CREDITS_PER_SECOND = 20

const CREATE_TABLE = `
  CREATE TABLE IF NOT EXISTS videos (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id varchar(255) NOT NULL,
    prompt text NOT NULL,
    seconds integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
  )`

const INSERT_VIDEO = `
  INSERT INTO videos (user_id, prompt, seconds) VALUES ($1, $2, $3)
  RETURNING id, user_id, prompt, seconds`

const LIST_VIDEOS = `
  SELECT id, user_id, prompt, seconds FROM videos WHERE user_id = $1 ORDER BY id`

async function videos (fastify) {
  await fastify.pg.query(CREATE_TABLE)

  fastify.post('/videos', { schema: { body: videoBody } }, async (request, reply) => {
    const { user_id: userId, prompt, seconds } = request.body

    const order = await inTransaction(fastify.pg, async client => {
      const { rows: [video] } = await client.query(INSERT_VIDEO, [userId, prompt, seconds])
      // The charge comes last, because it locks the account until COMMIT. Too few credits throw: the video is rolled back,
      // and the reply is a 402.
      const { balance } = await fastify.credits.deduct({
        userId,
        credits: seconds * CREDITS_PER_SECOND,
        operation: 'video_generation',
        metadata: { seconds },
        client
      })
      return { video, credits: balance.available }
    })

    reply.code(201)
    return order
  })

  fastify.get('/videos', { schema: { querystring: userQuery } }, async request => {
    const { rows } = await fastify.pg.query(LIST_VIDEOS, [request.query.user_id])
    return { videos: rows }
  })
}

const user = { type: 'string', minLength: 1, maxLength: 255 }

const videoBody = {
  type: 'object',
  required: ['user_id', 'prompt', 'seconds'],
  additionalProperties: false,
  properties: {
    user_id: user,
    prompt: { type: 'string', minLength: 1, maxLength: 4000 },
    seconds: { type: 'integer', minimum: 1, maximum: 600 }
  }
}

const userQuery = { type: 'object', required: ['user_id'], properties: { user_id: user } }

/** A plugin of the host: it takes orders for videos, and stores and charges each in one transaction. */
export default fp(videos, {
  fastify: '5.x',
  name: 'videos',
  dependencies: ['@fastify/postgres', 'fastify-ai-credits']
})
