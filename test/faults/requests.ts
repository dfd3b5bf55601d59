import { Agent, request } from 'node:http'

/** A reply, read to its end. */
export interface Reply {
  status: number
  replayed: boolean
  body: any
}

const agent = new Agent({ keepAlive: true, maxSockets: 200 })
const PATIENCE = 20_000 // far more than a gateway's own limit

/** Sends a POST request. Rejects if no reply came, or only a part of one. */
export async function post (url: string, body: unknown, key: string): Promise<Reply> {
  const headers = { 'content-type': 'application/json', 'idempotency-key': key }
  return await new Promise((resolve, reject) => {
    const sent = request(url, { method: 'POST', agent, headers, timeout: PATIENCE }, reply => {
      let text = ''
      reply.setEncoding('utf8')
      reply.on('data', part => { text += part })
      reply.on('error', reject)
      reply.on('end', () => {
        if (!reply.complete) return reject(new Error('The reply was cut off'))
        const replayed = reply.headers['idempotency-replayed'] === 'true'
        resolve({ status: reply.statusCode!, replayed, body: JSON.parse(text) })
      })
    })
    sent.on('error', reject)
    sent.on('timeout', () => sent.destroy(new Error(`No reply in ${PATIENCE} ms`)))
    sent.end(JSON.stringify(body))
  })
}
