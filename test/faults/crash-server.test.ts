// not on Citus: starts a server of its own
// needs a real server
import { crashTest } from './crashes.js'
import { rounds } from './settings.js'

// In turn, so even a few rounds have each of them.
const kinds = ['killBackend', 'stopServer', 'killServer'] as const

crashTest('the server killed under load', rounds(2, 50), async (site, round) => {
  await site.moment()
  await site[kinds[round % kinds.length]!]()
})
