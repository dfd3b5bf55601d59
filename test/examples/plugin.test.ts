import t from 'tap'
import { send, startServer, temporaryFolder } from './run-example.js'

const SCRIPT = 'examples/deduct-from-a-plugin/server.js'

t.test('a plugin that charges in its own transaction', async t => {
  const env = { DATA_DIR: await temporaryFolder(t) }
  const { url, output, errors, end } = await startServer(t, SCRIPT, env)
  const order = (seconds: number, userId = 'alice') =>
    send(`${url}/videos`, { user_id: userId, prompt: 'A cat at sea', seconds })
  const videos = async (userId = 'alice') => (await send(`${url}/videos?user_id=${userId}`)).body.videos
  const credits = async (userId = 'alice') => (await send(`${url}/api/credits?user_id=${userId}`)).body.credits

  await t.test('the video and its charge commit together', async t => {
    const video = { id: '1', user_id: 'alice', prompt: 'A cat at sea', seconds: 20 }
    t.strictSame(await order(20), { status: 201, body: { video, credits: 600 } })
    t.strictSame(await videos(), [video])
    const { usage_history: [{ date, ...entry }], ...balance } = await credits()
    t.strictSame(balance, { available: 600, total: 1000, used: 400 })
    t.strictSame(entry, { used: 400, operation: 'video_generation', seconds: 20 })
  })

  await t.test('with too few credits there is neither', async t => {
    const before = [await videos(), await credits()]
    t.match(await order(31), {
      status: 402,
      body: { code: 'FST_CREDITS_INSUFFICIENT', message: 'Insufficient credits: 620 required, 600 available' }
    })
    t.strictSame([await videos(), await credits()], before)
  })

  await t.test('of concurrent orders those that fit are stored and paid for', async t => {
    const outcomes = await Promise.all(Array.from({ length: 20 }, () => order(10, 'bob')))
    const statuses = outcomes.map(({ status }) => status)
    t.strictSame(statuses.filter(status => status === 201).length, 5)
    t.strictSame(statuses.filter(status => status === 402).length, 15)
    t.equal((await videos('bob')).length, 5)
    t.match(await credits('bob'), { available: 0, used: 1000 })
  })

  await t.test('a malformed order is refused', async t => {
    for (const seconds of [0, 601, 1.5]) t.equal((await order(seconds)).status, 400)
    t.equal((await order(1, '')).status, 400)
  })

  await t.test('the lines at start', async t => {
    t.match(output(), /curl http:\/\/localhost:\d+\/videos .*"user_id":"alice"/)
    t.match(output(), /curl "http:\/\/localhost:\d+\/api\/credits\?user_id=alice"/)
  })

  const before = [await videos(), await credits()]
  t.equal(await end('SIGINT'), 0)
  t.equal(errors(), '')

  const again = await startServer(t, SCRIPT, env)
  t.strictSame([
    (await send(`${again.url}/videos?user_id=alice`)).body.videos,
    (await send(`${again.url}/api/credits?user_id=alice`)).body.credits
  ], before)
})
