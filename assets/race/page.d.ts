// What the scripts of this folder find around them, and the record that they pass on, for the type
// checker alone (tsconfig.json): no browser gets this file.

// Above the scripts: dmtd_demo/web/files.py, and Gradio's component or web/replay_file.py.
declare const TEXTS: Record<string, Record<string, string>>;
declare const element: HTMLElement;
declare const props: { value: string };
declare const watch: (name: string, then: () => void) => void;
// Of the page that listens to a lecture.
declare let changed: () => void;
// What never changes. An exported file has the race and the pictures of its charts; a page has none.
declare const given: {
  hints: Record<string, string>;
  plotly: string;
  template: string;
  recorded?: string;
  pictures?: Picture[];
  record?: string;
};
interface Picture { caption: string; source: string; paper: string }

interface Window {
  // plotly.js has no types of its own.
  Plotly: any;
  // What the listeners of ui/page.py call.
  dmtdRace: Record<string, any>;
  gradio_config?: { root: string; api_prefix: string };
}
// Where the browser threw a tab away that nobody looked at; not every browser says so.
interface Document { wasDiscarded?: boolean }

// The trace (docs/design.md): the lines of a race.
interface Token {
  id: number | null;
  text: string;
  origin: string;
  span: number;
  logprob?: number | null;
  // how much of the text is of the thought before the answer
  thought?: number;
  // [id, text, probability]
  top?: [number | null, string, number][];
}
// start, stop and positions of each run of layers
interface Pass { kind: string; runs: [number, number, number][] }
interface Step {
  type: "step";
  panel: number;
  step: number;
  ms: number;
  tokens: Token[];
  passes: Pass[];
  lengths?: number[];
  // of a tree of drafts: the place before each, or -1, and which stand
  tree?: number[];
  stood?: number[];
}
interface PanelEntry {
  panel: number;
  spec: string;
  decoder: string;
  model?: string;
  quantization?: string;
  dtype?: string;
  layers?: number;
  lossless?: boolean;
  alike?: boolean;
  options?: Record<string, any>;
}
interface Turn { role: string; content: string }
interface Header {
  type: "header";
  schema: number;
  run?: string;
  prompt?: string;
  panels: PanelEntry[];
  sampling?: { temperature: number };
  conversations?: Turn[][];
}
interface Summary {
  type: "end" | "summary";
  panel: number;
  stop: string;
  message?: string;
  tokens: number;
  pieces?: number;
  full_passes: number;
  tokens_per_second?: number | null;
  first_token_ms?: number | null;
  tokens_per_full_pass?: number | null;
  plt?: number | null;
  repetition_ratio?: number | null;
  agreement?: number | null;
  audit_agreement?: number | null;
  extra_parameters?: number | null;
  spans?: Record<string, number>;
}
// ar's own choice at each token: id, text, and the probabilities of it and of the token
type Judged = [number, string, number, number];
interface Audit { type: "audit"; panel: number; agrees: boolean[]; choices?: Judged[] }
// Where a lossless panel's text parts from ar's: the token's index, and both texts with the probabilities that ar gives them.
interface Parting { index: number; ars: string; own: string; arsChance: number; ownChance: number }
// Where a race begins on the page (dmtd_demo/web/wire.py); a file has none.
interface PageLine { type: "page"; turns: Turn[][]; notes: { text: string; values: object }[] }
type TraceLine = Header | Step | Audit | Summary;

// The smallest step of a replay (tape.js).
interface Moment {
  ms: number;
  panel: number;
  step: Step;
  from: number;
  to: number;
  endsPass: boolean;
  endsCycle: boolean;
}
// A span of a panel: its tokens [first, end) and its clock in ms.
interface Span {
  panel: number;
  span: number;
  first: number;
  end: number;
  length: number;
  from: number;
  to: number;
}
interface Line { x: number[]; y: number[] }

// What each kind of figure has of its own (figures.js).
interface Figure {
  traces(): object[];
  layout(): object;
  draw(): void;
}

// The DOM as the scripts use it. All that they look for are HTML elements.
interface ParentNode {
  querySelector<E extends Element = HTMLElement>(selectors: string): E | null;
  querySelectorAll<E extends Element = HTMLElement>(selectors: string): NodeListOf<E>;
}
interface Element {
  closest<E extends Element = HTMLElement>(selectors: string): E | null;
  // the DOM writes a number as text
  setAttribute(name: string, value: string | number): void;
}
// An event comes from an element, or from the document, which has no closest.
interface EventTarget {
  closest?<E extends Element = HTMLElement>(selectors: string): E | null;
}
// The id of a timer, which the DOM writes as text.
interface DOMStringMap { timer: any }
interface Node {
  contains(other: EventTarget | null): boolean;
}
