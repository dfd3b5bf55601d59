// not on Citus: starts a server of its own
// needs a real server
import { crashTest } from './crashes.js'
import { rounds } from './settings.js'

crashTest('clients killed under load, their calls taken over', rounds(2, 30), async site => {
  const times = site.random.whole(1, 3)
  for (let kill = 0; kill < times; kill++) {
    await site.moment()
    await site.killClient()
  }
})

crashTest('client, gateway and server killed in one round', rounds(1, 20), async site => {
  await site.moment()
  await Promise.all([site.killGateway(), site.killClient(), site.stopServer()])
})
