// A process of its own that charges in an open loop, or in a closed one. Each call has an idempotency key.
import pg from 'pg'
import { createLedger } from '../../src/index.js'
import { charge } from '../contenders/contender.js'
import { anyUser, HOT, openPool } from '../databases.js'
import { runLoad } from '../load.js'
import { runOpenLoad } from './open-load.js'
import { zipf } from './zipf.js'

/** How a process charges. */
export interface Config {
  connectionString: string
  accounts: 'hot' | 'spread' | { count: number, exponent: number }
  maxQueue: number
}

/** What a process is to do: so many calls per second, or so many callers in a closed loop. */
export type Order = { rate: number, seconds: number } | { callers: number, seconds: number }

const { connectionString, accounts, maxQueue }: Config = JSON.parse(process.argv[2]!)
const pool: pg.Pool = openPool(connectionString, { idleTimeoutMillis: 0 })
const ledger = createLedger(pool, { maxQueue })
const user = chooser()
let loads = 0

process.on('disconnect', async () => {
  await ledger.close()
  await pool.end()
})
process.on('message', async (order: Order) => {
  const load = loads++
  let calls = 0
  const deduct = (userId: string, key: number) =>
    ledger.deduct({ userId, ...charge, idempotencyKey: `${process.pid} ${load} ${key}` })
  process.send!('rate' in order
    ? await runOpenLoad(order.rate, order.seconds, remember(deduct))
    : await runLoad(order.callers, order.seconds, () => deduct(user(), calls++)))
})
await ledger.balance(HOT)
process.send!('ready')

function chooser () {
  if (accounts === 'hot') return () => HOT
  if (accounts === 'spread') return anyUser
  const names = Array.from({ length: accounts.count }, (_, n) => `user${n}`)
  const choose = zipf(accounts.count, accounts.exponent)
  return () => names[choose()]!
}

// A call that is sent again is about the same account, as it has the same key.
function remember (deduct: (userId: string, key: number) => Promise<unknown>) {
  const users: string[] = []
  return (key: number) => {
    users[key] ??= user()
    return deduct(users[key], key)
  }
}
