// not on Citus: starts a server of its own
// needs a real server
import { crashTest } from './crashes.js'
import { rounds } from './settings.js'

crashTest('gateways killed under load', rounds(2, 100), async site => {
  const times = site.random.whole(1, 3)
  for (let kill = 0; kill < times; kill++) {
    await site.moment()
    await site.killGateway()
  }
})
