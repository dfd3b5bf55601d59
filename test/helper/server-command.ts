// Starts or stops the server for the test files that a process runs: node … server-command.ts start|stop <process id>
import { stopPostgres } from '../../bench/postgres/postgres.js'
import { folderOf, startSharedServer } from './shared-server.js'

const [command, runner] = process.argv.slice(2)
if (command === 'start') await startSharedServer(Number(runner))
else await stopPostgres(folderOf(Number(runner)))
