const LEVELS = { 40: 'WARN ', 50: 'ERROR ', 60: 'FATAL ' }

/** A stream for Fastify's logger that prints lines for people. In production leave it out, and keep the JSON. */
export const readableLog = {
  write (json) {
    process.stdout.write(`${format(JSON.parse(json))}\n`)
  }
}

function format ({ time, level, msg, err, req, res, reqId, responseTime }) {
  const parts = [new Date(time).toLocaleTimeString('en-GB'), ' ', LEVELS[level] ?? '']
  if (reqId) parts.push(reqId, ' ')
  if (req) parts.push(`${req.method} ${req.url}`)
  else if (responseTime) parts.push(`${res.statusCode} in ${responseTime.toFixed(1)} ms`)
  else parts.push(msg)
  if (level >= 50 && err?.stack) parts.push('\n', err.stack)
  return parts.join('')
}
