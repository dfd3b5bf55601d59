// Processes of the benchmark that make a load. They are told what to do by messages, and reply what it came to.
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'

/** Starts processes that run a file of this folder, and waits until each has sent a message. */
export async function startWorkers (count: number, file: string, config: object): Promise<ChildProcess[]> {
  return await Promise.all(Array.from({ length: count }, async () => {
    const worker = fork(new URL(file, import.meta.url), [JSON.stringify(config)])
    await replyOf(worker)
    return worker
  }))
}

/** Gives each process its order, all at once, and returns their replies. */
export async function order<Reply> (workers: ChildProcess[], what: object): Promise<Reply[]> {
  return await Promise.all(workers.map(async worker => {
    worker.send(what)
    return await replyOf(worker) as Reply
  }))
}

/** Ends processes, and waits until they have. */
export async function endWorkers (workers: ChildProcess[]): Promise<void> {
  await Promise.all(workers.map(async worker => {
    worker.disconnect()
    await once(worker, 'exit')
  }))
}

// A process that ends instead of a reply has printed why.
function replyOf (worker: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const ended = (code: number | null) => reject(new Error(`A process of the load ended with ${code}`))
    worker.once('exit', ended)
    worker.once('message', reply => {
      worker.off('exit', ended)
      resolve(reply)
    })
  })
}
