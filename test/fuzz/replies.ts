import type { Reply } from './conformance.js'

const END = '\r\n\r\n'
const NOTHING = '0\r\n\r\n' // in chunks, as Node.js itself refuses a request without a Host

/** Returns the replies in the bytes that a connection has received. The last one is left out if it is cut off. */
export function parseReplies (received: Buffer): Reply[] {
  const replies: Reply[] = []
  for (let rest = received; ;) {
    const end = rest.indexOf(END)
    if (end < 0) return replies
    const [statusLine = '', ...lines] = rest.subarray(0, end).toString('latin1').split('\r\n')
    const headers = Object.fromEntries(lines.map(line => [line.split(':', 1)[0]!.toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]))
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(statusLine)?.[1])
    rest = rest.subarray(end + END.length)
    const length = headers['transfer-encoding'] === 'chunked' ? NOTHING.length : Number(headers['content-length'] ?? 0)
    const body = rest.subarray(0, length).toString()
    if (rest.length < length) return replies
    if (status !== 100) replies.push({ status, headers, body: body === NOTHING ? '' : body }) // 100: go on
    rest = rest.subarray(length)
  }
}
