import { runServerCommand } from './outside-coverage.js'

runServerCommand('start')
