/** Returns a function that chooses one of so many things, the n-th with a probability proportional to 1 ÷ n^exponent. */
export function zipf (count: number, exponent: number): () => number {
  const sums = new Float64Array(count)
  let sum = 0
  for (let index = 0; index < count; index++) sums[index] = sum += (index + 1) ** -exponent
  return () => firstAbove(sums, Math.random() * sum)
}

// The index of the first of these ascending numbers that is greater.
function firstAbove (numbers: Float64Array, limit: number) {
  let low = 0
  let high = numbers.length - 1
  while (low < high) {
    const middle = (low + high) >> 1
    if (numbers[middle]! > limit) high = middle
    else low = middle + 1
  }
  return low
}
