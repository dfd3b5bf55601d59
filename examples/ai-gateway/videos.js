import { randomUUID } from 'node:crypto'
import { makeVideo } from './model.js'

const body = {
  type: 'object',
  required: ['prompt', 'seconds'],
  additionalProperties: false,
  properties: {
    prompt: { type: 'string', minLength: 1, maxLength: 4000 },
    seconds: { type: 'integer', minimum: 1, maximum: 60 }
  }
}

/**
 * `POST /v1/videos`: accepts a job, charges it at once, and makes the video afterwards. A job that fails is refunded.
 * `GET /v1/videos/:id`: returns the job's status.
 */
export default async function videos (app) {
  const jobs = new Map() // a real gateway keeps them in its database
  const underWay = new Set()
  app.addHook('onClose', () => Promise.all(underWay))

  app.post('/v1/videos', { schema: { body } }, async (request, reply) => {
    const { prompt, seconds } = request.body
    const job = { id: randomUUID(), userId: request.user.sub, status: 'making' }
    const { balance } = await app.credits.deduct({
      userId: job.userId, operation: 'video_generation', usage: { seconds }, idempotencyKey: job.id
    })
    jobs.set(job.id, job)
    const work = make(job, prompt)
    underWay.add(work)
    work.finally(() => underWay.delete(work))
    reply.status(202)
    return { id: job.id, status: job.status, credits: balance.available }
  })

  app.get('/v1/videos/:id', async (request, reply) => {
    const job = jobs.get(request.params.id)
    if (job?.userId !== request.user.sub) return reply.callNotFound()
    const { userId: _userId, ...shown } = job
    return shown
  })

  async function make (job, prompt) {
    try {
      job.url = await makeVideo(prompt)
      job.status = 'done'
    } catch (error) {
      app.log.warn({ err: error }, 'A video failed')
      await refund(job)
    }
  }

  // The idempotency key makes it safe to repeat the refund: it is made once.
  async function refund (job) {
    const { id, userId } = job
    await app.credits.refund({ userId, deductKey: id, reason: 'generation failed', idempotencyKey: `refund ${id}` })
    job.status = 'failed, refunded'
  }
}
