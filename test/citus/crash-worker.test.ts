// needs a real server
// crashes the cluster
import t from 'tap'
import { crashTestAt } from '../faults/crashes.js'
import { rounds } from '../faults/settings.js'
import { citus } from '../helper/citus.js'
import { ClusterSite } from './crash-site.js'

if (!citus) t.pass('there is no cluster', { skip: 'npm run test:citus' })
else {
  crashTestAt(ClusterSite.open, 'a worker crashes under load', rounds(3, 30), async site => {
    await site.moment()
    await site.crashWorker()
  })
}
