import { Readable } from 'node:stream'
import { countTokens, streamTokens } from './model.js'

const body = {
  type: 'object',
  required: ['prompt'],
  additionalProperties: false,
  properties: { prompt: { type: 'string', minLength: 1, maxLength: 4000 } }
}

// Held before the model is asked; what the tokens cost is spent when the stream has ended, however it ended.
const config = { credits: { operation: 'chat', hold: 500, usage: ({ tokens }) => tokens } }

/** `POST /v1/chat`: streams a model's answer as server-sent events, and is paid for by the token. */
export default async function chat (app) {
  app.decorateRequest('tokens', null)

  app.post('/v1/chat', { schema: { body }, config }, async (request, reply) => {
    const abort = new AbortController()
    reply.raw.once('close', () => abort.abort()) // nobody reads on: the model need not, either
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
