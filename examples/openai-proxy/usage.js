import { Transform } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'

/** Returns roughly how many tokens a text has: here its words. */
export function countTokens (text) {
  return text.trim().split(/\s+/).length
}

/**
 * Returns a stream with the same data, and calls `onUsage` with the usage that it finds: in server-sent events, or in a
 * whole JSON body. Until an event reports the usage, each event with content counts as one token.
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
  // An upstream that breaks off ends this stream with an error; a client that leaves ends the upstream's stream.
  source.on('error', error => metered.destroy(error))
  metered.on('close', () => source.destroy())
  return source.pipe(metered)
}

// Lines between events, `[DONE]`, and bodies that are not JSON have no usage.
function parse (text) {
  try {
    return JSON.parse(text) ?? {}
  } catch {
    return {}
  }
}
