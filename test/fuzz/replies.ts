import type { Reply } from './conformance.js'

const END = '\r\n\r\n'

/** The replies in what a connection has received; the last one may be cut off, and does not count then. */
export function parseReplies (received: Buffer): Reply[] {
  const replies: Reply[] = []
  for (let rest = received; ;) {
    const end = rest.indexOf(END)
    if (end < 0) return replies
    const [statusLine = '', ...lines] = rest.subarray(0, end).toString('latin1').split('\r\n')
    const headers = Object.fromEntries(lines.map(line => [line.split(':', 1)[0]!.toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]))
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(statusLine)?.[1])
    const length = Number(headers['content-length'] ?? 0)
    const body = rest.subarray(end + END.length, end + END.length + length)
    if (body.length < length) return replies
    if (status !== 100) replies.push({ status, headers, body: body.toString() }) // 100: go on
    rest = rest.subarray(end + END.length + length)
  }
}
