import { Transform } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'

/** How many tokens a text has, roughly: here its words. */
export function countTokens (text) {
  return text.trim().split(/\s+/).length
}

/**
 * The same stream, of which each piece with a usage is told: events one by one, or a whole JSON body. Until the last
 * event says what was used, each event with content counts for a token.
 *
 * @param {import('node:stream').Readable} source
 * @param {(usage: { prompt_tokens?: number, completion_tokens: number }) => void} onUsage
 */
export function meterUsage (source, onUsage) {
  const decoder = new StringDecoder('utf8')
  let rest = ''
  let seen = 0

  function read (line) {
    const { usage, choices = [] } = parse(line.replace(/^data: /, ''))
    if (usage) onUsage({ prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens })
    else if (choices.some(({ delta }) => delta?.content)) onUsage({ completion_tokens: ++seen })
  }

  const metered = new Transform({
    transform (chunk, _encoding, done) {
      const lines = (rest + decoder.write(chunk)).split('\n')
      rest = lines.pop()
      lines.forEach(read)
      done(null, chunk)
    },
    flush (done) {
      read(rest)
      done()
    }
  })
  // Either end takes the other with it: an upstream that breaks off, and a client that leaves.
  source.on('error', error => metered.destroy(error))
  metered.on('close', () => source.destroy())
  return source.pipe(metered)
}

// Lines between events, `[DONE]` and bodies that are no JSON have no usage.
function parse (text) {
  try {
    return JSON.parse(text) ?? {}
  } catch {
    return {}
  }
}
