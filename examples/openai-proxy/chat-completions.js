import replyFrom from '@fastify/reply-from'
import { countTokens, meterUsage } from './usage.js'

const DEFAULT_MAX_TOKENS = 500

const body = {
  type: 'object',
  required: ['messages'],
  properties: {
    messages: {
      type: 'array',
      minItems: 1,
      items: { type: 'object', required: ['content'], properties: { content: { type: 'string' } } }
    },
    stream: { type: 'boolean' },
    max_tokens: { type: 'integer', minimum: 1, maximum: 100_000 }
  }
}

/**
 * `POST /v1/chat/completions`: passed on to the upstream, and paid for by the usage that it reports in its last event.
 * A client that leaves before that pays for what it was sent.
 *
 * @param {{ upstream: string, key: string }} options
 */
export default async function chatCompletions (app, { upstream, key }) {
  app.register(replyFrom, { base: upstream })
  app.decorateRequest('usage', null)

  const config = {
    credits: {
      operation: 'chat',
      // The most that it may cost.
      hold: request => app.credits.quote('chat', { ...estimate(request), completion_tokens: maxTokens(request) }).credits,
      usage: request => request.usage,
      metadata: ({ body }) => ({ model: body.model ?? 'default' })
    }
  }

  app.post('/v1/chat/completions', { schema: { body }, config }, (request, reply) => {
    request.usage = estimate(request)
    return reply.from('/v1/chat/completions', {
      body: askingForUsage(request),
      rewriteRequestHeaders: (_request, headers) => upstreamHeaders(headers, key),
      onResponse: (request, reply, response) => {
        reply.send(meterUsage(response.stream, usage => { request.usage = { ...request.usage, ...usage } }))
      }
    })
  })
}

function estimate ({ body }) {
  const prompt = body.messages.map(({ content }) => content).join(' ')
  return { prompt_tokens: countTokens(prompt), completion_tokens: 0 }
}

function maxTokens ({ body }) {
  return body.max_tokens ?? DEFAULT_MAX_TOKENS
}

// A stream reports its usage only where it is asked to; and no more is made than is held for.
function askingForUsage (request) {
  const asked = { ...request.body, max_tokens: maxTokens(request) }
  return asked.stream ? { ...asked, stream_options: { ...asked.stream_options, include_usage: true } } : asked
}

// The gateway's own key instead of the user's token, and a body that can be read.
function upstreamHeaders ({ 'accept-encoding': _encoding, ...headers }, key) {
  return { ...headers, authorization: `Bearer ${key}` }
}
