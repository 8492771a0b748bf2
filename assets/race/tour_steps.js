// The comparisons of the guided tour, as JSON: the race of each step. Its texts are tour.1.title
// and so on in assets/texts: text, what to look at, is shown as the race begins; then, after it:
// {name panel} stands for a figure of that race (TOUR_VALUES in tour.js). tests/ui/test_tour.py
// holds what the texts claim against the shipped weights.
// OPEN_TOUR is for every other model: those of its steps whose panels it can run. world: the
// prompt for one that knows the small world of `classroom` only. Its texts claim nothing that
// weights decide.
const OPEN_TOUR = [
  {"prompt": "Repeat this text word for word: The quick brown fox jumps over the lazy dog. The lazy dog sleeps in the sun, and the quick brown fox runs home.", "world": "Repeat these words: river, apple, lamp, candle, tiger", "panels": ["ar", "prompt-lookup"], "tokens": 60},
  {"prompt": "Why is the sky blue? Answer in three sentences.", "world": "Why is decoding slow?", "panels": ["ar", "mtp-native-verified"], "tokens": 60},
  {"prompt": "Why is the sky blue? Answer in three sentences.", "world": "Why is decoding slow?", "panels": ["ar", "mtp-verified", "clp"], "tokens": 60},
  {"prompt": "Why is the sky blue? Answer in three sentences.", "world": "Why is decoding slow?", "panels": ["ar", "dmtd-spec"], "tokens": 60},
  {"prompt": "Why is the sky blue? Answer in three sentences.", "world": "Why is decoding slow?", "panels": ["ar", "dmtd:tau=2"], "tokens": 60}
];
const TOUR = [
  {"prompt": "Why is decoding slow?", "panels": ["ar", "dmtd:tau=6"], "tokens": 160},
  {"prompt": "What is DMTD?", "panels": ["ar", "dmtd:tau=2", "dmtd:tau=6"], "tokens": 160},
  {"prompt": "Tell me a story about Iris, a fox and a red lantern in the harbour.", "panels": ["ar", "dmtd:tau=2", "dmtd:tau=6"], "tokens": 160},
  {"prompt": "Tell me a story about Iris, a fox and a red lantern in the harbour.", "panels": ["ar", "dmtd:tau=6", "dmtd-spec"], "tokens": 160},
  {"prompt": "Write cat cat cat cat cat cat.", "panels": ["ar", "mtp-heads"], "tokens": 80},
  {"prompt": "Tell me a story about Iris, a fox and a red lantern in the forest.", "panels": ["ar", "mtp-heads", "clp"], "tokens": 160},
  {"prompt": "Tell me a story about Iris, a fox and a red lantern in the forest.", "panels": ["ar", "clp:threshold=0.5", "mtp-verified"], "tokens": 160},
  {"prompt": "Repeat these words: river, apple, lamp, candle, tiger", "panels": ["ar", "prompt-lookup"], "tokens": 40},
  {"prompt": "What is an LLM?", "panels": ["ar", "dmtd:tau=4", "dmtd-adaptive"], "tokens": 160},
  {"prompt": "What is quantization?", "panels": ["ar", "dmtd:tau=4", "clp"], "tokens": 160}
];
