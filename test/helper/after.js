import { runServerCommand } from './outside-coverage.js'

runServerCommand('stop')
