import type {
  AllowanceTerms, Balance, Budget, BudgetDefinition, Budgets, BudgetsInput, Capture, CaptureInput, DeductInput, Deduction,
  Extension, ExtendInput, Grant, GrantInput, HistoryEntry, Hold, HoldInput, Metadata, OverdraftTerms, RecurringAllowance,
  Refund, RefundInput, Release, ReleaseInput, Revocation, RevokeInput, StatementEntry
} from '../../src/index.js'
import {
  historyOf, listBudgets, makeFromTemplate, pathOf, removeBudget, requireRoom, setBudget, type Spender, type Usage
} from './budgets.js'
import { nextRenewal } from './calendar.js'
import { Refusal } from './refusal.js'

const NEVER = Infinity
const FIFTEEN_MINUTES = 900_000
const DEFAULT_PRIORITY = 50
const LAST_TO_BURN = 101

type Plan = RecurringAllowance | null

/** A grant: the credits given, and how many of them are unspent. */
interface Given {
  id?: string
  kind: 'grant' | 'allowance' | 'refund'
  credits: number
  left: number
  priority: number
  expiresAt: number
  ended?: 'expired' | 'revoked'
  revocation?: Revocation
}

/** A hold: credits that are set aside. */
interface Held {
  id: string
  left: number
  /** How many of these were kept from grants that have ended. */
  pinned: number
  operation: string
  metadata: Metadata
  expiresAt: number
  /** The budgets in which it counts: the one that it names, then those above it. */
  path: string[]
  state: 'open' | 'captured' | 'released' | 'lapsed'
  captures: Array<{ key?: string, request: string, answer: Capture }>
  /** The result of the capture or release that closed the hold. */
  closing?: { request: string, answer: Capture }
  release?: Release
}

/** A usage record: credits that were spent. */
interface Spent {
  id: string
  key?: string
  kind: 'deduct' | 'capture'
  credits: number
  refunded: number
  operation: string
  metadata: Metadata
  at: number
  /** As that of a hold. */
  path: string[]
}

interface Account extends Spender {
  userId: string
  createdAt: number
  given: Given[]
  holds: Held[]
  spent: Spent[]
  /** Spending that no grant has covered yet. */
  debt: number
  /** Spent in this period. */
  used: number
  overdraft: number
  plan: Plan
  ownPlan: boolean
  /** The plan that begins with the next renewal; undefined: no change. */
  nextPlan: Plan | undefined
  renewsAt: number
  entries: StatementEntry[]
  answers: Map<string, { request: string, answer: object }>
  /** All that was spent, and given back. */
  usage: Usage[]
}

interface State {
  now: number
  /** The option of the same name. */
  allowance: number | RecurringAllowance
  accounts: Map<string, Account>
  ids: number
}

/**
 * The rules of the ledger, in memory and in UTC. It works differently from the real one, because otherwise both could make
 * one mistake. It takes spending from grants at once. It computes a balance from what is left of the grants, the holds and
 * the debt, instead of keeping a running sum. Times are in milliseconds, and `now` never goes back.
 */
export class Reference {
  #state: State

  constructor (now: number, allowance: number | RecurringAllowance) {
    this.#state = { now, allowance, accounts: new Map(), ids: 0 }
  }

  get now (): number {
    return this.#state.now
  }

  set now (time: number) {
    this.#state.now = time
  }

  /** Changes the option `allowance`, like a host that starts again with another one. */
  setOption (allowance: number | RecurringAllowance): void {
    this.#state.allowance = allowance
  }

  clone (): Reference {
    const copy = new Reference(0, 0)
    copy.#state = structuredClone(this.#state)
    return copy
  }

  balance (userId: string): Balance {
    return balanceOf(this.#touch(userId))
  }

  /** Every entry of the account's statement. */
  entries (userId: string): StatementEntry[] {
    return this.#touch(userId).entries
  }

  deduct ({ userId, credits, operation, metadata = {}, budget, idempotencyKey }: DeductInput): Deduction {
    const account = this.#touch(userId!)
    return once(account, 'deduct', idempotencyKey, [credits, operation, metadata, budget], () => {
      const path = this.#charge(account, budget, credits)
      lay(account, credits)
      account.used += credits
      const { id } = this.#record(account, { key: idempotencyKey, kind: 'deduct', credits, operation, metadata, path })
      const balance = this.#enter(account, 'deduct', { id, operation, metadata, budget })
      return { id, userId: account.userId, credits, operation, balance, replayed: false }
    })
  }

  hold ({ userId, credits, operation, metadata = {}, ttl = FIFTEEN_MINUTES, budget, idempotencyKey }: HoldInput): Hold {
    const account = this.#touch(userId!)
    return once(account, 'hold', idempotencyKey, [credits, operation, metadata, ttl, budget], () => {
      const path = this.#charge(account, budget, credits)
      const id = this.#id('hold')
      const expiresAt = this.now + ttl
      account.holds.push({ id, left: credits, pinned: 0, operation, metadata, expiresAt, path, state: 'open', captures: [] })
      const balance = this.#enter(account, 'hold', { id, operation, metadata, budget })
      return { id, userId: account.userId, credits, operation, expiresAt: new Date(expiresAt), balance, replayed: false }
    })
  }

  capture (holdId: string, input: CaptureInput = {}): Capture {
    const { account, hold } = this.#findHold(holdId, input.userId)
    const { credits: asked, metadata, final = true, shortfall = 'partial', idempotencyKey: key } = input
    const request = JSON.stringify([asked, metadata, final, shortfall])
    const earlier = earlierCapture(hold, key, request)
    if (earlier !== undefined) return replay(earlier, request)
    if (hold.state !== 'open' && hold.state !== 'lapsed') throw new Refusal('FST_CREDITS_HOLD_CLOSED')

    const wanted = asked ?? hold.left
    const own = hold.state === 'open' ? Math.min(wanted, hold.left) : 0
    const extra = Math.min(wanted - own, Math.max(0, spendable(account)))
    const uncollected = wanted - own - extra
    if (uncollected > 0 && shortfall === 'reject') throw insufficient(account, wanted)

    const closes = final || hold.state === 'lapsed'
    const credits = own + extra
    take(account, hold, own)
    if (closes) end(hold, 'captured')
    lay(account, extra)
    account.used += credits
    const merged = { ...hold.metadata, ...metadata }
    const { operation, path } = hold
    const { id } = this.#record(account, { kind: 'capture', credits, operation, metadata: merged, path })
    const balance = this.#enter(account, 'capture', { id, referenceId: holdId, operation, metadata: merged, budget: path[0] })
    const answer: Capture = { id, holdId, userId: account.userId, credits, uncollected, balance, replayed: false }
    hold.captures.push({ key, request, answer })
    if (closes) hold.closing = { request, answer }
    return answer
  }

  release (holdId: string, { userId }: ReleaseInput = {}): Release {
    const { account, hold } = this.#findHold(holdId, userId)
    if (hold.state === 'captured') throw new Refusal('FST_CREDITS_HOLD_CLOSED')
    if (hold.release !== undefined) return { ...hold.release, replayed: true }
    return this.#giveBack(account, hold, 'released', this.now)
  }

  extend (holdId: string, { userId, ttl }: ExtendInput): Extension {
    const { account, hold } = this.#findHold(holdId, userId)
    if (hold.state !== 'open') throw new Refusal('FST_CREDITS_HOLD_CLOSED')
    hold.expiresAt = Math.max(hold.expiresAt, this.now + ttl)
    const expiresAt = new Date(hold.expiresAt)
    return { id: holdId, userId: account.userId, credits: hold.left, expiresAt, balance: balanceOf(account) }
  }

  grant ({ userId, credits, reason, expiresAt: until, priority = DEFAULT_PRIORITY, idempotencyKey }: GrantInput): Grant {
    const account = this.#touch(userId!)
    const expiresAt = until === undefined ? null : new Date(until)
    return once(account, 'grant', idempotencyKey, [credits, reason, priority], () => {
      if (expiresAt !== null && +expiresAt <= this.now) throw new Refusal('FST_CREDITS_INVALID', { field: 'expiresAt' })
      refuseOverflow(account, credits)
      const id = this.#id('grant')
      give(account, { id, kind: 'grant', credits, priority, expiresAt: expiresAt === null ? NEVER : +expiresAt })
      const balance = this.#enter(account, 'grant', { id, reason })
      return { id, userId: account.userId, credits, expiresAt, priority, balance, replayed: false }
    })
  }

  revoke (grantId: string, { userId }: RevokeInput = {}): Revocation {
    const owner = this.#owner(account => account.given.some(({ id }) => id === grantId), userId)
    const account = this.#touch(owner.userId)
    const grant = account.given.find(({ id }) => id === grantId)!
    if (grant.ended === 'expired') throw new Refusal('FST_CREDITS_GRANT_CLOSED')
    if (grant.revocation !== undefined) return { ...grant.revocation, replayed: true }
    const credits = endGrant(account, grant, 'revoked')
    const balance = this.#enter(account, 'revoke', { referenceId: grantId })
    grant.revocation = { id: grantId, userId: account.userId, credits, balance, replayed: false }
    return grant.revocation
  }

  refund (input: RefundInput): Refund {
    const { usageId, deductKey, userId, reason, idempotencyKey } = input
    const names = ({ id, key }: Spent) => usageId === undefined ? key === deductKey : id === usageId
    const owner = this.#owner(account => account.spent.some(names), userId)
    const account = this.#touch(owner.userId)
    const record = account.spent.find(names)!
    return once(account, 'refund', idempotencyKey, [record.id, input.credits, reason], () => {
      const refundable = record.credits - record.refunded
      const credits = input.credits ?? refundable
      if (credits > refundable || credits === 0) throw new Refusal('FST_CREDITS_REFUND_EXCEEDS')
      const ofThisPeriod = Math.min(credits, account.used)
      refuseOverflow(account, credits - ofThisPeriod)
      record.refunded += credits
      account.used -= ofThisPeriod
      unlay(account, credits)
      const { id: referenceId, operation, metadata, path } = record
      account.usage.push({ at: this.now, credits: -credits, operation, metadata, path })
      const id = this.#id('record')
      const balance = this.#enter(account, 'refund', { id, referenceId, operation, metadata, reason, budget: path[0] })
      return { id, usageId: referenceId, userId: account.userId, credits, balance, replayed: false }
    })
  }

  setAllowance (userId: string, plan: Plan): AllowanceTerms {
    const account = this.#touch(userId)
    account.ownPlan = true
    if (account.renewsAt < NEVER) {
      account.nextPlan = plan
    } else if (plan !== null) {
      account.plan = plan
      beginPeriod(account, 0, this.now)
      this.#enter(account, 'renewal', { details: { periods: 0, expired: 0, allowance: plan } })
    }
    const renewsAt = account.renewsAt === NEVER ? null : new Date(account.renewsAt)
    return { userId, allowance: plan, renewsAt, balance: balanceOf(account) }
  }

  setOverdraft (userId: string, overdraft: number): OverdraftTerms {
    const account = this.#touch(userId)
    if (overdraft > account.overdraft + roomOf(account)) throw new Refusal('FST_CREDITS_INVALID', { field: 'credits' })
    account.overdraft = overdraft
    return { userId, overdraft, balance: balanceOf(account) }
  }

  setBudget (userId: string, name: string, definition: BudgetDefinition): Budget {
    return setBudget(this.#touch(userId), name, definition, this.now)
  }

  removeBudget (userId: string, name: string): void {
    removeBudget(this.#touch(userId), name)
  }

  budgets (userId: string, input: BudgetsInput = {}): Budgets {
    return listBudgets(this.#touch(userId), input, this.now)
  }

  /** What was ever spent in a budget, by day. */
  history (userId: string, budget: string): HistoryEntry[] {
    return historyOf(this.#touch(userId).usage, budget)
  }

  // Every access to an account creates it if it is missing, and settles what is due: lapses, expiries and renewals.
  #touch (userId: string): Account {
    const account = this.#state.accounts.get(userId) ?? this.#create(userId)
    this.#settle(account)
    return account
  }

  #create (userId: string): Account {
    const { allowance, now } = this.#state
    const plan = typeof allowance === 'number' ? null : allowance
    const account: Account = {
      userId,
      createdAt: now,
      given: [],
      holds: [],
      spent: [],
      debt: 0,
      used: 0,
      overdraft: 0,
      plan,
      ownPlan: false,
      nextPlan: undefined,
      renewsAt: NEVER,
      entries: [],
      answers: new Map(),
      budgets: new Map(),
      usage: []
    }
    beginPeriod(account, typeof allowance === 'number' ? allowance : 0, now)
    this.#state.accounts.set(userId, account)
    this.#enter(account, 'opening', {})
    return account
  }

  #settle (account: Account): void {
    let renewal: StatementEntry | undefined
    for (let due = nextDue(account); due <= this.now; due = nextDue(account)) {
      for (const hold of openHolds(account).filter(({ expiresAt }) => expiresAt === due)) {
        this.#giveBack(account, hold, 'lapsed', due)
      }
      for (const grant of burnOrder(account).filter(({ kind, expiresAt }) => kind === 'grant' && expiresAt === due)) {
        endGrant(account, grant, 'expired')
        this.#enter(account, 'expiry', { referenceId: grant.id }, due)
      }
      if (account.renewsAt === due) renewal = this.#renew(account, due, renewal)
    }
  }

  // Several periods that end with nothing between them are one entry.
  #renew (account: Account, at: number, before: StatementEntry | undefined): StatementEntry {
    const merged = before !== undefined && account.entries.at(-1) === before ? account.entries.pop()!.details! : undefined
    const ending = burnOrder(account).find(({ kind, expiresAt }) => kind === 'allowance' && expiresAt === at)!
    const rest = endGrant(account, ending, 'expired')
    const carried = Math.min(rest, rollover(account.plan))
    account.used = 0
    account.plan = planFrom(account, this.#state.allowance)
    account.nextPlan = undefined
    beginPeriod(account, carried, at)
    const periods = 1 + (merged?.periods ?? 0)
    const expired = rest - carried + (merged?.expired ?? 0)
    this.#enter(account, 'renewal', { details: { periods, expired, allowance: account.plan } }, at)
    return account.entries.at(-1)!
  }

  #giveBack (account: Account, hold: Held, state: 'released' | 'lapsed', at: number): Release {
    const credits = hold.left - hold.pinned
    const { left } = hold
    end(hold, state)
    const balance = this.#enter(account, state === 'lapsed' ? 'lapse' : 'release', { referenceId: hold.id }, at)
    if (state === 'lapsed') hold.left = left // the default amount of a late capture
    hold.release = { id: hold.id, userId: account.userId, credits, balance, replayed: false }
    return hold.release
  }

  // Writes an entry of the statement. Its amount is the change of the available credits since the entry before.
  #enter (account: Account, kind: StatementEntry['kind'], cause: Partial<StatementEntry>, at = this.now): Balance {
    const balance = balanceOf(account)
    const amount = balance.available - (account.entries.at(-1)?.balance.available ?? 0)
    const facts = Object.fromEntries(Object.entries(cause).filter(([, value]) => value !== undefined))
    account.entries.push({ seq: account.entries.length, kind, at: new Date(at), amount, balance, ...facts })
    return balance
  }

  // Refuses a charge that does not fit. Returns the budgets in which it counts.
  #charge (account: Account, budget: string | undefined, credits: number): string[] {
    const path = pathOf(account, budget)
    requireCredits(account, credits)
    requireRoom(account, path, credits, this.now, () => ({ required: credits, credits: balanceOf(account) }))
    makeFromTemplate(account, path)
    return path
  }

  #record (account: Account, fields: Omit<Spent, 'id' | 'at' | 'refunded'>): Spent {
    const record = { ...fields, id: this.#id('record'), at: this.now, refunded: 0 }
    account.spent.push(record)
    account.usage.push(record)
    return record
  }

  #id (what: string): string {
    this.#state.ids++
    return `${what} ${this.#state.ids}`
  }

  #findHold (holdId: string, userId?: string): { account: Account, hold: Held } {
    const isIt = ({ id }: Held) => id === holdId
    const account = this.#touch(this.#owner(account => account.holds.some(isIt), userId).userId)
    return { account, hold: account.holds.find(isIt)! }
  }

  #owner (owns: (account: Account) => boolean, userId?: string): Account {
    const accounts = [...this.#state.accounts.values()].filter(account => account.userId === (userId ?? account.userId))
    const account = accounts.find(owns)
    if (account === undefined) throw new Refusal('FST_CREDITS_NOT_FOUND')
    return account
  }
}

function sum (numbers: number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}

function openHolds ({ holds }: Account): Held[] {
  return holds.filter(({ state }) => state === 'open')
}

// Returns the living grants in burn order: by priority number, then by expiry, then by age.
function burnOrder ({ given }: Account): Given[] {
  return given
    .filter(({ ended }) => ended === undefined)
    .sort((a, b) => a.priority - b.priority || Math.sign(a.expiresAt - b.expiresAt) || 0)
}

function balanceOf (account: Account): Balance {
  const held = sum(openHolds(account).map(({ left }) => left))
  const saved = sum(openHolds(account).map(({ pinned }) => pinned))
  const unspent = sum(burnOrder(account).map(({ left }) => left))
  const available = unspent + saved - account.debt - held
  return { available, total: available + account.used + held, used: account.used, held }
}

function spendable (account: Account): number {
  return balanceOf(account).available + account.overdraft
}

function insufficient (account: Account, required: number): Refusal {
  return new Refusal('FST_CREDITS_INSUFFICIENT', { required, credits: balanceOf(account) })
}

function requireCredits (account: Account, credits: number): void {
  if (spendable(account) < credits) throw insufficient(account, credits)
}

// Returns how many credits may still be added: an account can never spend more than 2^53 - 1 in all.
function roomOf (account: Account): number {
  return Number.MAX_SAFE_INTEGER - balanceOf(account).total - account.overdraft
}

function refuseOverflow (account: Account, credits: number): void {
  if (credits > roomOf(account)) {
    throw new Refusal('FST_CREDITS_INVALID', { field: 'credits' })
  }
}

// Spends from the living grants, in burn order. What they cannot cover is debt.
function lay (account: Account, credits: number): void {
  for (const grant of burnOrder(account)) {
    const part = Math.min(credits, grant.left)
    grant.left -= part
    credits -= part
  }
  account.debt += credits
}

// Gives spent credits back: pays the debt, then fills the grants in reverse burn order. What remains becomes a new grant.
function unlay (account: Account, credits: number): void {
  const paid = Math.min(credits, account.debt)
  account.debt -= paid
  credits -= paid
  for (const grant of burnOrder(account).reverse()) {
    const part = Math.min(credits, grant.credits - grant.left)
    grant.left += part
    credits -= part
  }
  if (credits > 0) give(account, { kind: 'refund', credits, priority: DEFAULT_PRIORITY, expiresAt: NEVER })
}

// Adds a grant, which pays the debt first.
function give (account: Account, grant: Omit<Given, 'left'>): void {
  account.given.push({ ...grant, left: grant.credits })
  const { debt } = account
  account.debt = 0
  lay(account, debt)
}

// Ends a grant. Open holds keep what they hold of it. Returns how many credits are lost.
function endGrant (account: Account, ending: Given, how: 'expired' | 'revoked'): number {
  const free = burnOrder(account).map(grant => ({ grant, left: grant.left }))
  for (const hold of openHolds(account)) {
    let uncovered = hold.left - hold.pinned
    for (const place of free) {
      const part = Math.min(uncovered, place.left)
      place.left -= part
      uncovered -= part
      if (place.grant === ending) hold.pinned += part
    }
  }
  ending.left = 0
  ending.ended = how
  return free.find(({ grant }) => grant === ending)!.left
}

// Spends from a hold: first what it kept of ended grants, then from living grants.
function take (account: Account, hold: Held, credits: number): void {
  const saved = Math.min(credits, hold.pinned)
  hold.pinned -= saved
  hold.left -= credits
  lay(account, credits - saved)
}

function end (hold: Held, state: Held['state']): void {
  Object.assign(hold, { state, left: 0, pinned: 0 })
}

function earlierCapture ({ captures, closing, state }: Held, key: string | undefined, request: string) {
  if (key !== undefined) return captures.find(capture => capture.key === key)
  return state === 'captured' && closing?.request === request ? closing : undefined
}

function beginPeriod (account: Account, carried: number, at: number): void {
  const room = roomOf(account) - carried
  const credits = carried + Math.max(0, Math.min(account.plan?.credits ?? 0, room))
  account.renewsAt = account.plan === null ? NEVER : nextRenewal(account.plan, account.createdAt, at)
  const priority = account.plan === null ? LAST_TO_BURN : DEFAULT_PRIORITY
  give(account, { kind: 'allowance', credits, priority, expiresAt: account.renewsAt })
}

function rollover (plan: Plan): number {
  const carry = plan?.rollover ?? 'none'
  if (typeof carry === 'object') return carry.max
  return carry === 'all' ? NEVER : 0
}

// An account without a plan of its own follows the option.
function planFrom ({ plan, ownPlan, nextPlan }: Account, option: number | RecurringAllowance): Plan {
  if (nextPlan !== undefined) return nextPlan
  return ownPlan || typeof option === 'number' ? plan : option
}

function nextDue (account: Account): number {
  const grants = burnOrder(account).map(({ expiresAt }) => expiresAt)
  const holds = openHolds(account).map(({ expiresAt }) => expiresAt)
  return Math.min(account.renewsAt, ...grants, ...holds)
}

// A request that is repeated with its key returns the first result again. Another request with that key is refused. A refused
// request leaves its key unused.
function once<T extends object> (
  account: Account, kind: string, key: string | undefined, content: unknown[], act: () => T
): T {
  if (key === undefined) return act()
  const scope = `${kind} ${key}`
  const request = JSON.stringify(content)
  const earlier = account.answers.get(scope) as { request: string, answer: T } | undefined
  if (earlier !== undefined) return replay(earlier, request)
  const answer = act()
  account.answers.set(scope, { request, answer })
  return answer
}

function replay<T extends object> (earlier: { request: string, answer: T }, request: string): T {
  if (earlier.request !== request) throw new Refusal('FST_CREDITS_IDEMPOTENCY_CONFLICT')
  return { ...earlier.answer, replayed: true }
}
