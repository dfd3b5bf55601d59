import assert from 'node:assert'
import type { Reply } from './conformance.js'
import { ROUTE, writes, type Gateway } from './gateway.js'
import type { Sent } from './requests.js'
import type { Shadow } from './shadow.js'

/** A request and its reply. */
export interface Exchange {
  sent: Sent
  reply: Reply
}

/** Checks one reply against the document, and records in the shadow what it means. */
export function checkExchange (gateway: Gateway, shadow: Shadow, holds: Map<string, string>, { sent, reply }: Exchange): void {
  const route = reply.headers[ROUTE] as string | undefined
  gateway.check(sent.method, route, reply)
  if (route === undefined || route === 'none') return
  const account = accountOf(gateway, sent, route)
  if (mayCreate(reply, route) && account !== undefined) shadow.name(account)
  if (reply.status >= 300) {
    shadow.refused++
    return
  }
  shadow.accepted++
  const [, ...kinds] = writes.find(([ending]) => route.endsWith(ending)) ?? []
  const [kind] = kinds
  if (kind === undefined || sent.method !== 'POST') return
  const answer = JSON.parse(reply.body)
  const owner = ownerOf(answer, account, holds)
  if (kind === 'hold') holds.set(answer.id, owner)
  const key = route === '/work' ? undefined : sent.headers['idempotency-key']
  if (key !== undefined) shadow.answerTo([kind, owner, answer.hold_id, key], reply.body)
  const credits = kind === 'deduct' ? bodyOf(sent).credits : answer.credits
  if (reply.headers['idempotency-replayed'] !== undefined) return assert.strictEqual(reply.headers['idempotency-replayed'], 'true')
  const bound = kind === 'deduct' ? gateway.budgetOf(sent.headers['x-user']) : undefined
  for (const made of kinds) shadow.accept(made, owner, credits, bound ?? bodyOf(sent).budget)
}

// Returns true if a refused request may have created its account: if it came as far as the ledger.
function mayCreate ({ status }: Reply, route: string): boolean {
  return [200, 204, 402, 404, 409].includes(status) || (status === 400 && /\/(grants|budgets\/[^/]+)$/.test(route))
}

// Returns the account in the reply, which must be the one that the request named; otherwise the account of the hold.
function ownerOf (answer: any, account: string | undefined, holds: Map<string, string>): string {
  if (answer.hold_id !== undefined) {
    assert.strictEqual(answer.user_id, holds.get(answer.hold_id), 'the account of the hold')
    return answer.user_id
  }
  const owner = answer.user_id ?? account
  if (answer.usage_id === undefined) assert.strictEqual(owner, account, 'the account that was named')
  return owner
}

function accountOf (gateway: Gateway, sent: Sent, route: string): string | undefined {
  const named = ['POST', 'PUT'].includes(sent.method) ? bodyOf(sent)?.user_id : new URLSearchParams(queryOf(sent.url)).get('user_id') ?? undefined
  const user = sent.headers['x-user']
  const bound = /\/credits(\/deduct|\/check|\/budgets)?$/.test(route) && user !== 'service'
  const own = gateway.accountOf(bound ? user : undefined)
  return gateway.title === 'identified' && bound ? own : named ?? own
}

function bodyOf ({ body }: Sent): any {
  try {
    return JSON.parse(body!.toString().replace(/^\ufeff/, ''))
  } catch {
    return undefined
  }
}

function queryOf (url: string): string {
  return /\?([^#]*)/.exec(url)?.[1] ?? ''
}
