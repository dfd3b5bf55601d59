// Runs test files one after the other, without tap's coverage: npm run test:one -- test/ledger/deduct.test.ts
// It fails if one of them does.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { stopPostgres } from '../../bench/postgres/postgres.js'
import { folderOf, startSharedServer } from './shared-server.js'

const own = process.env.TEST_DATABASE_URL === undefined
if (own) await startSharedServer(process.pid)
try {
  for (const file of process.argv.slice(2)) {
    const test = spawn(process.execPath, ['--enable-source-maps', '--import=@tapjs/typescript/import', file], { stdio: 'inherit' })
    const [code] = await once(test, 'exit')
    if (code !== 0) process.exitCode = 1
  }
} finally {
  if (own) await stopPostgres(folderOf(process.pid))
}
