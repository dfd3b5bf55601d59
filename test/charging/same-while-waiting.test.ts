// not on Citus: about HTTP
// needs a real server
import t from 'tap'
import { buildCharged, reconciles } from '../helper/charging.js'
import { catchUncaught, declareStyles, replySame, styles } from '../helper/reply-styles.js'

// If the reply waits for its cost, it is sent a moment later than on an uncharged route.

// These styles depend on that moment: on an uncharged route the headers are sent, or the connection breaks, before the
// handler's next line.
const { 'writes without hijack, and sends': _writes, 'sends a stream and throws': _sends, ...others } = styles

const server = { logger: false }
const pays = Object.fromEntries(Object.entries(others).map(([name, style]) => [name, style.pays]))

t.test('with capture: before, the reply stays the same', async t => {
  const uncaught = catchUncaught(t)
  const gateway = await buildCharged(t, app => declareStyles(app, { capture: 'before' }, others), { server })
  // Once the headers are sent, the charge stays.
  const begun = { 'fails in mid-stream': 100, 'fails in mid-stream of the web': 100, 'fails in mid-stream of a Response': 100 }
  t.strictSame(await replySame(t, gateway, '', others), { ...pays, ...begun })
  t.strictSame(uncaught, [])
  await reconciles(t, gateway)
})

t.test('with an async function as the cost, the reply stays the same', async t => {
  const uncaught = catchUncaught(t)
  const cost = async () => {
    await new Promise(resolve => setImmediate(resolve))
    return 100
  }
  const gateway = await buildCharged(t, app => declareStyles(app, { hold: 100, cost }, others), { server })
  t.strictSame(await replySame(t, gateway, '', others), pays)
  t.strictSame(uncaught, [])
  await reconciles(t, gateway)
})
