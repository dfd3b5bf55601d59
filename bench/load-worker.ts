// A process of its own that charges in a closed loop: bench/processes.ts starts several.
import pg from 'pg'
import { createLedger } from '../src/index.js'
import { charge } from './contenders/contender.js'
import { chargeByHand } from './contenders/hand-written.js'
import { anyUser, HOT, openPool } from './databases.js'
import { runLoad } from './load.js'
import type { Order } from './processes.js'

const { connectionString } = JSON.parse(process.argv[2]!)
const pool: pg.Pool = openPool(connectionString, { idleTimeoutMillis: 0 }) // it keeps its connections between loads
const ledger = createLedger(pool)
let made = 0

const users = { hot: () => HOT, spread: anyUser, new: () => `new ${process.pid} ${made++}` }

process.on('disconnect', async () => {
  await ledger.close()
  await pool.end()
})
process.on('message', async ({ callers, seconds, accounts, byHand }: Order) => {
  const user = users[accounts]
  const call = byHand ? () => chargeByHand(pool, user()) : () => ledger.deduct({ userId: user(), ...charge })
  process.send!(await runLoad(callers, seconds, call))
})
await ledger.balance(HOT)
process.send!('ready')
