import { stopPostgres } from './postgres.js'
import { sharedFolder } from './shared-server.js'

if (process.env.TEST_DATABASE_URL === undefined) await stopPostgres(sharedFolder)
