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
 * `POST /v1/chat/completions`: forwards the request to the upstream, and charges the usage that it reports in its last
 * event. A client that leaves before that event pays for what was sent until then.
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

// A stream reports its usage only if the request asks for it. `max_tokens` limits the cost to what is held.
function askingForUsage (request) {
  const limited = { ...request.body, max_tokens: maxTokens(request) }
  return limited.stream ? { ...limited, stream_options: { ...limited.stream_options, include_usage: true } } : limited
}

// Replaces the user's token by the gateway's own key. Removes accept-encoding, because meterUsage cannot read a compressed
// body.
function upstreamHeaders ({ 'accept-encoding': _encoding, ...headers }, key) {
  return { ...headers, authorization: `Bearer ${key}` }
}
