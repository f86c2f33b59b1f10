/** Seeded random numbers, and the way from one latent to another. */

/** Return a generator of numbers in [0, 1): mulberry32 of a mixed seed. */
export function uniform(seed) {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return standard normal numbers by Box and Muller. */
export function normal(count, seed) {
  const next = uniform(seed);
  const made = new Float32Array(count);
  for (let at = 0; at < count; at += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - next()));
    const angle = 2 * Math.PI * next();
    made[at] = radius * Math.cos(angle);
    if (at + 1 < count) made[at + 1] = radius * Math.sin(angle);
  }
  return made;
}

export const freshSeed = () => Math.floor(Math.random() * 1e6);

const norm = (vector) => Math.hypot(...vector);

/** Return the point at a share of the arc from one latent to another (slerp). */
export function between(from, to, share) {
  const cosine = from.reduce((sum, each, at) => sum + each * to[at], 0) / (norm(from) * norm(to) || 1);
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  const sine = Math.sin(angle);
  if (sine < 1e-3) return from.map((each, at) => each + (to[at] - each) * share);
  const [a, b] = [Math.sin((1 - share) * angle) / sine, Math.sin(share * angle) / sine];
  return from.map((each, at) => each * a + to[at] * b);
}

/** Return a latent moved along directions, as far from the origin as it was. */
export function moved(latent, steps) {
  const made = Float32Array.from(latent);
  for (const { direction, by } of steps) {
    const scale = by / norm(direction);
    for (let at = 0; at < made.length; at += 1) made[at] += direction[at] * scale;
  }
  const back = norm(latent) / (norm(made) || 1);
  return made.map((each) => each * back);
}
