import { lockFolder } from '../../examples/folder-lock.js'

// Holds the folder until standard input ends.
const unlock = await lockFolder(process.argv[2])
process.stdout.write('locked\n')
process.stdin.resume().once('end', unlock)
