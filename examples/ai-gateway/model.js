import { setTimeout as sleep } from 'node:timers/promises'

// A stand-in for the AI services behind the gateway.

/** Returns how many tokens a text has: here its words. */
export function countTokens (text) {
  return text.trim().split(/\s+/).length
}

/**
 * Yields the reply to a prompt token by token. Fails in the middle if the prompt has 'break off'.
 *
 * @param {string} prompt
 * @param {{ signal: AbortSignal, milliseconds?: number }} options
 */
export async function * streamTokens (prompt, { signal, milliseconds = 20 }) {
  const tokens = `You asked: ${prompt} That is a good question, and this is the whole of the answer.`.split(' ')
  for (const [index, token] of tokens.entries()) {
    await sleep(milliseconds, undefined, { signal })
    if (prompt.includes('break off') && index === 5) throw new Error('The model broke off')
    yield token
  }
}

/**
 * Makes a video in 50 milliseconds and returns its URL. Fails if the prompt has 'fail'.
 *
 * @param {string} prompt
 */
export async function makeVideo (prompt) {
  await sleep(50)
  if (prompt.includes('fail')) throw new Error('The model made no video')
  return `https://videos.example/${encodeURIComponent(prompt)}`
}
