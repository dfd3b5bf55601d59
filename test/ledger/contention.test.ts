// needs no database
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Contention } from '../../src/ledger/posting/contention.js'

t.test('an account that was locked elsewhere is likely to be so again, for some statements', async t => {
  const contention = new Contention(600_000)
  t.notOk(contention.isLikely('ann'))
  contention.note('ann')
  t.notOk(contention.isLikely('bob'))
  let likely = 0
  while (contention.isLikely('ann')) likely++
  t.equal(likely, 16)
  t.notOk(contention.isLikely('ann'), 'then one is tried')
  contention.note('ann')
  t.ok(contention.isLikely('ann'), 'and if it is still locked, the next ones wait again')
})

t.test('it is forgotten after a while without statements', async t => {
  const contention = new Contention(1)
  contention.note('ann')
  await sleep(20)
  t.notOk(contention.isLikely('ann'))
})

t.test('it remembers the last thousand accounts', async t => {
  const contention = new Contention(600_000)
  contention.note('first')
  contention.note('second')
  contention.note('first')
  for (let i = 0; i < 999; i++) contention.note(`other ${i}`)
  t.notOk(contention.isLikely('second'))
  for (let i = 0; i < 999; i++) contention.note(`other ${i}`)
  t.ok(contention.isLikely('first') && contention.isLikely('other 998'))
})
