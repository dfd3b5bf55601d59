import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import { countTokens } from './usage.js'

// A stand-in for an OpenAI-compatible service.

const PAUSE = 20 // milliseconds between tokens

/** Starts the service on a free port of this machine. It refuses if the prompt has 'refuse', and fails if 'break off'. */
export async function startSimulatedUpstream () {
  const app = Fastify({ forceCloseConnections: true })
  app.post('/v1/chat/completions', async (request, reply) => {
    const { messages, stream, stream_options: options } = request.body
    const prompt = messages.map(({ content }) => content).join(' ')
    if (prompt.includes('refuse')) return reply.code(429).send({ error: { message: 'Rate limit reached' } })
    const tokens = `You asked: ${prompt} That is a good question, and this is the whole answer.`.split(' ')
    const usage = { prompt_tokens: countTokens(prompt), completion_tokens: tokens.length }
    const message = { role: 'assistant', content: tokens.join(' ') }
    if (!stream) return { object: 'chat.completion', choices: [{ message }], usage }
    reply.type('text/event-stream')
    return Readable.from(events(tokens, options?.include_usage ? usage : undefined, prompt.includes('break off')))
  })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  return { url, close: () => app.close() }
}

async function * events (tokens, usage, breaksOff) {
  for (const [index, content] of tokens.entries()) {
    await sleep(PAUSE)
    if (breaksOff && index === 5) throw new Error('The model broke off')
    yield event({ choices: [{ delta: { content: `${content} ` } }] })
  }
  if (usage) yield event({ choices: [], usage })
  yield 'data: [DONE]\n\n'
}

function event (data) {
  return `data: ${JSON.stringify({ object: 'chat.completion.chunk', ...data })}\n\n`
}
