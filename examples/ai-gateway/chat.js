import { Readable } from 'node:stream'
import { countTokens, streamTokens } from './model.js'

const body = {
  type: 'object',
  required: ['prompt'],
  additionalProperties: false,
  properties: { prompt: { type: 'string', minLength: 1, maxLength: 4000 } }
}

// Holds 500 credits before the model runs. When the stream has ended, also early, it captures what the tokens cost.
const config = { credits: { operation: 'chat', hold: 500, usage: ({ tokens }) => tokens } }

/** `POST /v1/chat`: streams a model's reply as server-sent events, and charges it by the token. */
export default async function chat (app) {
  app.decorateRequest('tokens', null)

  app.post('/v1/chat', { schema: { body }, config }, async (request, reply) => {
    const abort = new AbortController()
    reply.raw.once('close', () => abort.abort()) // the client has gone, so the model can stop
    request.tokens = { input_tokens: countTokens(request.body.prompt), output_tokens: 0 }
    reply.type('text/event-stream')
    return reply.send(Readable.from(events(request, abort.signal)))
  })
}

async function * events (request, signal) {
  for await (const token of streamTokens(request.body.prompt, { signal })) {
    request.tokens.output_tokens++
    yield `data: ${JSON.stringify({ token })}\n\n`
  }
  yield 'data: [DONE]\n\n'
}
