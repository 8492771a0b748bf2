// A link that opens the race itself: its record, compressed, in the address after #race=, which no
// server is sent. Longer ones than a message or an old browser carries have the menu Keep.

const MOST_LINK = 32_000; // characters: what browsers and messengers pass on whole
const LINK_MARK = "#race=";

/**
 * @param {string} text
 * @returns {Promise<string>}  its bytes, deflated, in the letters that an address may have
 */
async function packed(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let letters = "";
  for (const byte of bytes) letters += String.fromCharCode(byte);
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * The text that was packed. Throws an Error where it is none, or would be longer than `most` bytes.
 * @param {string} letters
 * @param {number} most
 */
async function unpacked(letters, most) {
  const bytes = Uint8Array.from(atob(letters.replaceAll("-", "+").replaceAll("_", "/")), (letter) =>
    letter.charCodeAt(0),
  );
  const reader = new Blob([bytes])
    .stream()
    .pipeThrough(new DecompressionStream("deflate-raw"))
    .getReader();
  const parts = [];
  for (let size = 0; ;) {
    const { done, value } = await reader.read();
    if (done) return new Blob(parts).text();
    size += value.length;
    if (size > most)
      throw new Error(
        t("record.too_large", { most: most / 2 ** 20, got: Math.ceil(size / 2 ** 20) }),
      );
    parts.push(value);
  }
}

/**
 * The address that opens a race; null: its record is too long for one. The alternatives of its tokens are left out where it fits only so.
 * @param {Tape} tape
 */
async function linkOf(tape) {
  const whole = recordLines(tape);
  const slim = () =>
    whole
      .trim()
      .split("\n")
      .map((line) =>
        JSON.stringify(JSON.parse(line, (key, value) => (key === "top" ? undefined : value))),
      )
      .join("\n");
  for (const text of [() => whole, slim]) {
    const link = `${location.origin}${location.pathname}${LINK_MARK}${await packed(text())}`;
    if (link.length <= MOST_LINK) return link;
  }
  return null;
}

/**
 * Opens the race that the address has, if it has one.
 * @param {(name: string, records: TraceLine[]) => void} open
 * @param {(text: string) => void} say
 */
async function openLink(open, say) {
  if (!location.hash.startsWith(LINK_MARK)) return;
  try {
    open(
      t("link.name"),
      parseRecord(await unpacked(location.hash.slice(LINK_MARK.length), MOST_MEGABYTES * 2 ** 20)),
    );
  } catch (error) {
    say(t("link.broken", { error: error.message }));
  }
}
