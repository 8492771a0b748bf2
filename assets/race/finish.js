// The finish in words: who arrived, how much sooner than panel 1, and whether with the same words.

const MOST_COMPARED = 2000; // words: comparing takes their product

/**
 * How many words of a text are not, in this order, in another one.
 * @param {string} text
 * @param {string} other
 * @returns {{count: number, all: number} | null}  null: too long to compare
 */
function wordsApart(text, other) {
  const [own, theirs] = [text, other].map((each) => each.split(/\s+/).filter(Boolean));
  if (Math.max(own.length, theirs.length) > MOST_COMPARED) return null;
  let row = new Array(theirs.length + 1).fill(0); // the longest common subsequence, row by row
  for (const word of own) {
    const next = [0];
    theirs.forEach((each, i) =>
      next.push(word === each ? row[i] + 1 : Math.max(row[i + 1], next[i])),
    );
    row = next;
  }
  return { count: own.length - row.at(-1), all: own.length };
}

/**
 * What is said of a panel that came to its end; more shortly where it is not the first one.
 * @param {{name: string, ms: number, text: string}} own
 * @param {{name: string, ms: number, text: string}} base  panel 1
 * @param {boolean} compared  whether their words may be: not where tokens are drawn by chance, nor after other conversations
 * @param {boolean} first
 */
function finishOf(own, base, compared, first) {
  const factor = base.ms / own.ms,
    said = (key) => (first ? `finish.${key}` : `finish.more.${key}`);
  const key = factor >= 1.05 ? "sooner" : factor <= 0.95 ? "later" : "tied";
  const verdict = t(said(key), {
    name: own.name,
    ratio: `${Math.max(factor, 1 / factor).toFixed(1)}×`,
  });
  const apart = compared ? wordsApart(own.text, base.text) : null;
  if (!apart) return verdict;
  return t(said(apart.count || own.text.length < base.text.length ? "differ" : "same"), {
    verdict,
    base: base.name,
    count: apart.count,
    all: apart.all,
  });
}
