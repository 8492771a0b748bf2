"""What `classroom` says about language models, decoding, this page and itself: topic -> (questions,
the one answer).

The methods follow "Direct Multi-Token Decoding" (arXiv 2510.11958) and "CLP: Collocation-Length
Prediction" (arXiv 2606.10935). Questions that end without a mark are requests. Every answer has 60
to 150 words.
"""

from __future__ import annotations

EXPLANATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "language model": (
        (
            "What is a language model?",
            "Explain what a language model is",
            "How does a language model work?",
            "What does a language model do?",
            "Tell me about language models",
            "How do language models write text?",
            "What is an LLM?",
            "What is a large language model?",
        ),
        "A language model is a program that has learned from a lot of text which pieces of text "
        "tend to follow which. It reads the text so "
        "far and gives every possible next token a probability. One token is chosen and put at "
        "the end of the text, and the model goes on "
        "from there. Repeating this step makes sentences, answers and stories. There is no list "
        "of finished answers inside. What the model "
        "knows sits in its parameters, the numbers that training has adjusted. I am a language "
        "model too, only a very small one.",
    ),
    "token": (
        (
            "What is a token?",
            "Explain what a token is",
            "What are tokens?",
            "What does the word token mean?",
            "Tell me about tokens",
            "Is a token the same as a word?",
            "What do you mean by token?",
        ),
        "A token is a piece of text that a language model reads or writes as one unit. It may be "
        "a whole word, a part of a word, a single "
        "letter, a space or a comma. Common words are often one token, while rare words are put "
        "together from several. Inside the model "
        "every token is just a number in a fixed list, the vocabulary. A model writes by choosing "
        "one entry of that list after another, so "
        "the speed of a model is counted in tokens and not in words.",
    ),
    "tokenizer": (
        (
            "What is a tokenizer?",
            "What does a tokenizer do?",
            "Explain what a tokenizer is",
            "How is text split into tokens?",
            "How does a tokenizer work?",
            "Tell me about tokenizers",
            "What is tokenization?",
        ),
        "A tokenizer cuts text into tokens and turns each token into a number, because a model "
        "can only calculate with numbers. It also does "
        "the reverse and joins the tokens that a model has written back into text. Its list of "
        "tokens is made before training, often by "
        "merging letters that stand together frequently, so that common words become one token. A "
        "good tokenizer needs few tokens for a "
        "text. A model must always be used with the tokenizer that it was trained with, because "
        "otherwise the numbers would mean other "
        "pieces of text.",
    ),
    "layer": (
        (
            "What is a layer?",
            "What is a layer in a language model?",
            "Explain what a layer is",
            "What does one layer do?",
            "What are the layers of a model?",
            "How many layers do you have?",
            "Tell me about layers",
        ),
        "A layer is one stage of the calculation inside a model. In a model like me, each layer "
        "has two parts: attention, which collects "
        "information from earlier tokens, and a small network that works on each position by "
        "itself. The layer adds its result to the "
        "vector that it was given, and passes the sum to the next layer. I have twelve layers, "
        "and large models have many more. In ordinary "
        "decoding every new token goes through all of them, one after the other, and this is "
        "where most of the time goes.",
    ),
    "neural network": (
        (
            "What is a neural network?",
            "Explain neural networks",
            "How does a neural network work?",
            "What are neural networks?",
            "Tell me about neural networks",
            "What does a neural network do?",
        ),
        "A neural network is a calculation with many adjustable numbers, called parameters. It "
        "takes numbers in, multiplies and adds them in "
        "several layers, and bends the results with a simple curve between the layers. At first "
        "the parameters are random and the output is "
        "nonsense. During training the network sees examples, and every parameter is moved a "
        "little so that the error becomes smaller. After "
        "many such steps the network has picked up patterns that nobody wrote down as rules. The "
        "name comes from nerve cells in the brain, "
        "but the likeness is loose.",
    ),
    "attention": (
        (
            "What is attention?",
            "How does attention work?",
            "Explain attention",
            "What is attention in a language model?",
            "What does attention do?",
            "Tell me about attention",
            "What is self-attention?",
        ),
        "Attention is the way a model lets one position of the text use information from earlier "
        "positions. Each position makes a query, "
        "which says what it is looking for. Each earlier position offers a key, which says what "
        "it has, and a value, which is the "
        "information itself. Query and key are compared, and the better they match, the more of "
        "that value is taken over. So when I read "
        "the word she, attention can look back to the name in the sentence before. Every layer "
        "has its own attention, with several heads "
        "that look for different things.",
    ),
    "embedding": (
        (
            "What is an embedding?",
            "Explain what an embedding is",
            "What does the embedding do?",
            "What are embeddings?",
            "Tell me about embeddings",
            "How does a token become a vector?",
            "What is a token embedding?",
        ),
        "An embedding is the list of numbers that stands for a token inside a model. The model "
        "has a big table with one row for every token "
        "of the vocabulary, and reading a token means looking up its row. The rows are learned in "
        "training, and tokens that are used in "
        "similar ways often end up with similar rows. The embedding alone knows nothing about the "
        "rest of the sentence, since the layers "
        "add that later. In a late-layer-only pass of DMTD in this model, the late layers start "
        "from the bare embedding of the newest token.",
    ),
    "lm head": (
        (
            "What is the LM head?",
            "Explain the LM head",
            "What does the LM head do?",
            "What is a language model head?",
            "Tell me about the LM head",
            "What comes after the last layer?",
            "What does LM head mean?",
        ),
        "The LM head is the last step of a language model. After the final layer and a "
        "normalization, the model holds one vector for the "
        "current position, the hidden state. The LM head compares this vector with one learned "
        "vector for every token in the vocabulary and "
        "gives each token a score. These scores are called logits. Turned into probabilities, "
        "they say how likely each token is to come "
        "next. In DMTD the same LM head serves both kinds of pass, the full pass and the "
        "late-layer-only pass.",
    ),
    "logits": (
        (
            "What are logits?",
            "What is a logit?",
            "Explain logits",
            "How do logits become probabilities?",
            "What is softmax?",
            "How does a model give probabilities?",
            "Where do the probabilities come from?",
            "Tell me about logits",
        ),
        "Logits are the raw scores that a model gives to all the tokens that could come next. "
        "There is one logit for every token of the "
        "vocabulary, and it may be any number, positive or negative. A function called softmax "
        "turns the logits into probabilities: larger "
        "scores get larger shares, all shares are positive, and together they make one. If one "
        "logit is far above the others, the model is "
        "sure. If many are close together, it is in doubt. Greedy decoding takes the largest "
        "logit, and sampling draws from the "
        "probabilities.",
    ),
    "temperature": (
        (
            "What is temperature?",
            "What does temperature do?",
            "Explain temperature",
            "What is the temperature of a language model?",
            "Why would I change the temperature?",
            "What is temperature in sampling?",
            "Tell me about temperature in decoding",
        ),
        "Temperature is a setting that makes the choice of tokens more careful or more daring. "
        "The logits are divided by the temperature "
        "before they become probabilities. A temperature of one leaves the probabilities as the "
        "model gave them. A low temperature makes "
        "likely tokens even more likely, so the text becomes steady and predictable. A high "
        "temperature brings the probabilities closer "
        "together, so rare tokens get a chance and the text becomes more surprising, but also "
        "more often wrong. When the temperature goes "
        "to zero, only the most likely token is left, and this is greedy decoding.",
    ),
    "greedy": (
        (
            "What is greedy decoding?",
            "Explain greedy decoding",
            "What does greedy mean here?",
            "How does greedy decoding work?",
            "Tell me about greedy decoding",
            "What is an argmax?",
            "Why is greedy decoding useful?",
        ),
        "Greedy decoding always takes the token with the highest probability. There is no chance "
        "in it, so the same prompt gives the same "
        "text again and again. That makes it useful for comparing decoders: if two of them start "
        "from the same prompt and their texts "
        "differ, the reason is the method and not luck. The weakness is that the best next token "
        "does not always lead to the best whole "
        "text, and that greedy text can repeat itself. The most likely token is also called the "
        "argmax. The other common way of choosing "
        "is sampling.",
    ),
    "sampling": (
        (
            "What is sampling?",
            "Explain sampling",
            "How does sampling work?",
            "What does it mean to sample a token?",
            "Tell me about sampling",
            "Why does the same prompt sometimes give another text?",
            "What is the difference between sampling and greedy decoding?",
        ),
        "Sampling means that the next token is drawn by chance, with the probabilities that the "
        "model has given. A token with a probability "
        "of one half is drawn in half of the cases, and a rare token only now and then. So the "
        "same prompt can lead to different texts. "
        "Temperature makes the draw more careful or more daring, and limits can cut off very "
        "unlikely tokens. Greedy decoding leaves chance "
        "out and always takes the most likely token. DMTD works with any kind of sampling, since "
        "each token is drawn as soon as its "
        "probabilities exist.",
    ),
    "autoregressive": (
        (
            "What is autoregressive decoding?",
            "Explain autoregressive decoding",
            "What does autoregressive mean?",
            "What is ordinary decoding?",
            "How does autoregressive decoding work?",
            "How does a model normally write text?",
            "Tell me about autoregressive decoding",
        ),
        "Autoregressive decoding is the ordinary way in which a language model writes. The model "
        "runs all its layers to choose one token, adds "
        "that token to the text, and runs all its layers again for the next one. Each token "
        "depends on all the tokens before it, so the "
        "steps must follow one another and cannot be done at the same time. On this page it is "
        "the yardstick: every other decoder is "
        "compared with it, both in speed and in the tokens that it chooses. In the language of "
        "DMTD, every position goes through a full "
        "pass.",
    ),
    "why slow": (
        (
            "Why is decoding slow?",
            "Why do language models write so slowly?",
            "Why is text generation slow?",
            "What makes decoding slow?",
            "Why does a model need so long for one token?",
            "Explain why decoding is slow",
            "Why can a model not write all tokens at once?",
        ),
        "Decoding is slow because tokens come one after another. In ordinary decoding, each token "
        "needs a pass through all layers, and the "
        "next pass cannot start before the token is known. For every pass the computer must also "
        "fetch almost all the parameters from memory, "
        "and often this takes longer than the calculation itself. The processor then spends much "
        "of its time waiting. A pass over a few "
        "tokens at once costs hardly more than a pass over one. Faster decoders use this: they "
        "get several tokens from one full pass, by "
        "skipping layers or by predicting ahead.",
    ),
    "kv cache": (
        (
            "What is a KV cache?",
            "Explain the KV cache",
            "What does the KV cache do?",
            "Why do we need a KV cache?",
            "What is stored in the KV cache?",
            "How does the KV cache work?",
            "Tell me about the KV cache",
            "What does KV mean?",
        ),
        "The KV cache is the memory of attention. In every layer, each token makes a key and a "
        "value that later tokens will look at. They do "
        "not change any more, so the model keeps them instead of calculating them again for each "
        "new token. Without this cache every step "
        "would have to read the whole text anew. The cache grows with the text and takes up "
        "memory. DMTD must be careful with it: the "
        "middle layers skip some tokens, so their part of the cache has holes for a while, and "
        "cyclical refilling fills them.",
    ),
    "prefill": (
        (
            "What is prefill?",
            "What is prompt processing?",
            "Explain prefill",
            "What happens to my prompt first?",
            "How does a model read the prompt?",
            "Why is reading a prompt faster than writing?",
            "Tell me about prefill",
            "What does prefill mean?",
        ),
        "Prefill is the step in which a model reads the prompt. All tokens of the prompt are "
        "already known, so they go through the layers "
        "together in one big pass. That is why reading is so much faster, token for token, than "
        "writing. Prefill fills the KV cache and ends "
        "with the probabilities for the first new token. On this page every decoder does prefill "
        "in the same way: all layers run over "
        "every token of the prompt, and exactly one token comes out. Only after that do the "
        "decoders begin to differ.",
    ),
    "full pass": (
        (
            "What is a full pass?",
            "Explain a full pass",
            "What does full pass mean?",
            "What happens in a full pass?",
            "Tell me about full passes",
            "When does a model do a full pass?",
        ),
        "A full pass is a pass in which a token goes through all layers of the model, from the "
        "first to the last. It costs the most "
        "and gives the most thorough result. Ordinary decoding does a full pass for every single "
        "token. DMTD does a full pass only at the "
        "start of each cycle, and lets the late layers alone make the next few tokens. Decoders "
        "with MTP heads also begin each step with a "
        "full pass, and then try to get more than one token out of it. The fewer full passes a "
        "text needs, the faster it can be written.",
    ),
    "late pass": (
        (
            "What is a late-layer-only pass?",
            "What is a late layer pass?",
            "Explain a late-layer-only pass",
            "What happens in a late-layer-only pass?",
            "How can a model skip the middle layers?",
            "Tell me about late-layer-only passes",
            "Why is a late-layer-only pass fast?",
        ),
        "A late-layer-only pass makes a token without the middle layers. In my case the newest "
        "token is turned into its embedding, and the "
        "embedding goes straight into the late layers. By attention they look back at their own "
        "cache, where the full passes "
        "have left what the middle layers worked out. Then the LM head gives the probabilities as "
        "usual. Only a small part of the "
        "parameters must be fetched from memory, and this makes the pass fast. A model must be "
        "trained for it: without that training, the "
        "tokens from such passes are poor.",
    ),
    "late layers": (
        (
            "What do the late layers do?",
            "What are late layers?",
            "Explain the late layers",
            "What is the job of the late layers?",
            "Tell me about the late layers",
            "What happens in the last layers of a model?",
            "Why can the late layers work alone?",
        ),
        "The late layers are the last layers before the LM head. Their job is to turn what the "
        "model has worked out into actual words. The "
        "idea behind DMTD is that the result of a full pass often holds enough for more than one "
        "token, so that the late layers can go on "
        "writing for a short while on their own. I have twelve layers, and the last three of them "
        "are my late layers. Running three layers "
        "is much cheaper than running twelve. After a few tokens, though, a full pass is needed "
        "again, or the text would lose its thread.",
    ),
    "early and middle layers": (
        (
            "What do the middle layers do?",
            "What do the early and middle layers do?",
            "What do the early layers do?",
            "What are the middle layers?",
            "Explain early, middle and late layers",
            "What are thinking layers?",
            "Tell me about the middle layers",
        ),
        "DMTD divides the layers of a model into three groups. The early layers encode: they turn "
        "the tokens into something that the model "
        "can work with. The middle layers think: they bring the parts of the text together and "
        "work out what should come next. The late "
        "layers decode: they turn this result into tokens. The middle group is the largest, so "
        "skipping it saves the most time. The early "
        "group may be empty, and then the middle layers do its work too. That is the case for me: "
        "I have nine middle layers and three late ones.",
    ),
    "split": (
        (
            "What is E0D3?",
            "What does E0D3 mean?",
            "What does a split like E0D8 mean?",
            "What is a split?",
            "Explain E0D3",
            "How are your layers divided?",
        ),
        "A name like E0D3 says how DMTD divides the layers of a model. The number after E counts "
        "the early layers, and the number after D "
        "counts the late layers, which do the decoding. All the others are middle layers. I use "
        "E0D3: no early layers, three late layers, "
        "and nine of my twelve layers in the middle. A late-layer-only pass leaves out the middle "
        "layers, so it runs only three layers of "
        "mine. More late layers make such a pass slower, but its tokens better.",
    ),
    "dmtd": (
        (
            "What is DMTD?",
            "What is direct multi-token decoding?",
            "Explain DMTD",
            "How does DMTD work?",
            "What does DMTD mean?",
            "Tell me about DMTD",
            "Explain direct multi-token decoding",
            "How does DMTD make decoding faster?",
            "What is the idea behind DMTD?",
        ),
        "DMTD stands for direct multi-token decoding. It is a way to write several tokens for "
        "each full pass. First a token goes through all "
        "layers. For the next few tokens, only the late layers run, and the middle layers are "
        "left out. Then a new cycle begins with "
        "another full pass, which also fills the holes that the middle layers have left in their "
        "cache. No extra heads are "
        "added, and nothing is checked afterwards: each token stays as it was written. The model "
        "has to be trained for this. The "
        "gain is speed, because a late-layer-only pass is much cheaper than a full one.",
    ),
    "cycle": (
        (
            "What is a cycle?",
            "What is the cycle length?",
            "What is tau?",
            "Explain the cycle length",
            "What does tau mean?",
            "What happens when the cycle gets longer?",
            "How long should a cycle be?",
            "Explain cycles in DMTD",
        ),
        "A cycle is the rhythm of DMTD: one full pass, followed by a few late-layer-only passes. "
        "Its length is called tau. With tau equal to "
        "four, one token of each cycle comes from a full pass and three come from the late layers "
        "alone. With tau equal to one, every token "
        "gets a full pass, and this is ordinary decoding. A longer cycle is faster, because more "
        "tokens share the cost of one full pass. But "
        "the late layers must then go on longer without new help from the middle layers, and the "
        "quality drops.",
    ),
    "refilling": (
        (
            "What is cyclical refilling?",
            "Explain cyclical refilling",
            "What is refilling?",
            "How does DMTD repair the KV cache?",
            "What happens to the skipped tokens in the middle layers?",
            "Why does DMTD need refilling?",
            "Tell me about cyclical refilling",
        ),
        "Cyclical refilling keeps the memory of the middle layers complete. During "
        "late-layer-only passes the middle layers see nothing, so "
        "their KV cache has no entries for those tokens. At the next full pass, the middle layers "
        "therefore run over all the skipped tokens "
        "together with the new one, in one go. Only the new token's result goes on to the late "
        "layers, while the skipped ones just "
        "leave their keys and values in the cache. A pass over a few tokens takes hardly longer "
        "than a pass over one when memory "
        "is the limit, so this repair is cheap.",
    ),
    "mtp head": (
        (
            "What is an MTP head?",
            "What are MTP heads?",
            "Explain MTP heads",
            "What does an MTP head do?",
            "How does an MTP head work?",
            "What is multi-token prediction?",
            "Tell me about MTP heads",
            "What does MTP mean?",
        ),
        "MTP stands for multi-token prediction. An MTP head is a small network that is added on "
        "top of a finished model, the backbone. It "
        "reads the last hidden state and guesses a token further ahead: the backbone predicts the "
        "next token, the first MTP head the one "
        "after that, the second head the one after that, and so on. All these guesses come from "
        "one pass, so they cost little. But a head "
        "does not know which tokens are chosen before its own, so the further ahead it looks, the "
        "more often it is wrong. That is why a "
        "decoder should accept its guesses with care.",
    ),
    "architect": (
        (
            "What is Backbone-as-Architect?",
            "Explain Backbone-as-Architect",
            "What does Backbone-as-Architect mean?",
            "What is the backbone?",
            "Why does the backbone make the first token?",
            "Tell me about Backbone-as-Architect",
        ),
        "Backbone-as-Architect is a rule for decoding with MTP heads. The backbone is the full "
        "model itself. Its own LM head always makes "
        "the next token, and the MTP heads only make the tokens after that. So the backbone lays "
        "down the plan, and the heads fill "
        "in the easy parts. If a head replaces the backbone for the next token as well, the two "
        "compete, and the text tends to repeat "
        "itself. You can see this in the decoder that uses heads only. With the rule, each step "
        "contains at least one token that the "
        "backbone has chosen.",
    ),
    "clp": (
        (
            "What is CLP?",
            "What is a collocation-length predictor?",
            "Explain CLP",
            "How does CLP work?",
            "What does CLP do?",
            "Tell me about CLP",
            "What is collocation-length prediction?",
            "How does a decoder know how many MTP tokens to accept?",
        ),
        "CLP stands for collocation-length prediction. A collocation is a group of words that "
        "often stand together, and such groups are easy "
        "to guess. CLP is one single linear layer. It reads the hidden state of the backbone and "
        "predicts how many tokens of the MTP heads "
        "can be accepted at this step: none, one, two, and so on. In easy places it accepts more, "
        "and in hard places it leaves the work to "
        "the backbone. It is tiny, so it costs almost no time. Nothing is verified before it is "
        "shown, so the quality depends on how well "
        "CLP judges.",
    ),
    "span": (
        (
            "What is a span?",
            "Explain what a span is",
            "What does span mean here?",
            "What is the span length?",
            "Tell me about spans",
            "How many tokens does one full pass pay for?",
        ),
        "A span is the group of tokens that one full pass has paid for. In ordinary decoding "
        "every span has one token. In DMTD a span is a "
        "whole cycle: the token of the full pass and the tokens that the late layers add. With "
        "MTP heads, a span is the token of the "
        "backbone and the head tokens that were accepted. The longer the spans, the fewer full "
        "passes a text needs. But long spans only "
        "help if the tokens in them are good and the cheap passes are really cheap, so look at "
        "speed and text together.",
    ),
    "speculative": (
        (
            "What is speculative decoding?",
            "Explain speculative decoding",
            "How does speculative decoding work?",
            "What is verification?",
            "What does verifying drafts mean?",
            "What is a lossless decoder?",
            "Tell me about speculative decoding",
        ),
        "Speculative decoding first guesses and then checks. A cheap helper drafts a few tokens. "
        "Then the full model reads all of them in "
        "one pass and accepts them as long as they fit what it would have written. At the first "
        "mistake the rest of the draft is "
        "thrown away, and the full model puts its own token there. The result is lossless: with "
        "greedy decoding, the text is the same as "
        "from ordinary decoding. The price is the work on rejected drafts. Late layers and MTP "
        "heads can serve as the helper. DMTD and "
        "CLP themselves go without the check.",
    ),
    "audit": (
        (
            "What is the audit?",
            "What does the audit show?",
            "Explain the audit",
            "What does audit mean on this page?",
            "How does the audit work?",
            "Tell me about the audit",
            "How can I see which tokens are different?",
        ),
        "The audit checks a finished text token by token. For each token it asks: would ordinary "
        "decoding, given exactly the same text "
        "before it, have chosen this very token? If so, the shortcut has cost nothing at this "
        "place. If not, the decoder has gone its own "
        "way there, which may be a mistake or just another good word. The audit is done after a "
        "panel has finished and does not "
        "count in its time. It is only a report: it changes nothing in the text. For greedy "
        "ordinary decoding itself, every token must pass.",
    ),
    "quality": (
        (
            "Does skipping layers make the text worse?",
            "Is DMTD as good as ordinary decoding?",
            "Does DMTD change the answer?",
            "What do I lose with DMTD?",
            "Is faster decoding worse?",
            "Does DMTD make mistakes?",
        ),
        "Faster decoding can cost some quality. A token from the late layers alone, or from an "
        "MTP head, is made with less work and may be wrong where a full pass would "
        "have been right. Nothing in plain DMTD or CLP checks such a token before it is shown. "
        "With good training and short cycles "
        "the loss is small, and it grows as the cycles get longer. Some decoders verify every "
        "draft, and they lose nothing, but they have "
        "to do more work. On this page you can judge for yourself: read the texts, and look at "
        "the audit.",
    ),
    "quantization": (
        (
            "What is quantization?",
            "Explain quantization",
            "What does quantization do?",
            "Why are models quantized?",
            "Tell me about quantization",
            "What is a quantized model?",
            "How does quantization work?",
        ),
        "Quantization stores the parameters of a model with fewer bits. Instead of sixteen or "
        "thirty-two bits, a number may get only eight or "
        "four, together with a shared scale for a group of numbers. The model becomes smaller, "
        "and since less has to be fetched from "
        "memory for each pass, decoding often becomes faster too. The price is that every number "
        "is rounded, so the answers may change a "
        "little, and with very few bits they get worse. Quantization makes each pass cheaper, "
        "while DMTD needs fewer full passes, so "
        "the two can be combined.",
    ),
    "tokens per second": (
        (
            "What does tokens per second mean?",
            "What are tokens per second?",
            "How is the speed measured?",
            "Explain tokens per second",
            "How do I compare the speed of decoders?",
            "What is the speed of a decoder?",
        ),
        "Tokens per second is the usual measure of how fast a model writes: the number of new "
        "tokens divided by the time they took. It "
        "depends on the computer, the size of the model, the length of the text and the decoder. "
        "So compare numbers only when they come "
        "from the same computer and the same model, as on this page. A single run can be "
        "disturbed by other work on the computer, and for a "
        "fair picture it helps to repeat it. Also read the text: a decoder that writes nonsense "
        "quickly has gained nothing.",
    ),
    "parameters": (
        (
            "What are parameters?",
            "What is a parameter?",
            "Explain parameters",
            "How many parameters do you have?",
            "What are the weights of a model?",
            "Tell me about model parameters",
            "How big are you?",
        ),
        "Parameters are the numbers inside a model that training adjusts. They are also called "
        "weights. Together they hold everything that "
        "the model has learned, from spelling to facts, though no single number stands for a "
        "single fact. I have about ten "
        "million parameters, which is very few: well-known chat models have many billions. More "
        "parameters can hold more knowledge, but "
        "they need more memory, and every full pass has to fetch nearly all of them. This is why "
        "large models are slow, and why it "
        "pays to skip layers.",
    ),
    "training": (
        (
            "What is training?",
            "How is a language model trained?",
            "Explain training",
            "How do language models learn?",
            "What happens during training?",
            "Tell me about training a model",
            "How does a model learn to write?",
        ),
        "Training is how a model learns. It is shown text and must predict each next token from "
        "the tokens before it. The error is large "
        "when the true token was given a low probability. From the error one can calculate in "
        "which direction each parameter should move "
        "to do a little better, and all parameters take a small step that way. This is repeated "
        "many thousands of times with different "
        "text. Nobody writes rules into the model. Good training text matters a great deal, "
        "because a model can only pick up "
        "patterns that are there.",
    ),
    "how you were trained": (
        (
            "How were you trained?",
            "How did you learn all this?",
            "What were you trained on?",
            "Tell me how you were trained",
            "Where did you learn to write?",
            "What is special about your training?",
        ),
        "I was trained on a small made-up world: short stories, two-digit sums, word games, "
        "little Python functions, a table of facts, and "
        "questions like this one. A program wrote these texts, and I learned to predict the "
        "answers token by token. I was also "
        "trained for DMTD: at many positions my middle layers were left out, so that my late "
        "layers learned to go on alone. The MTP heads and "
        "the length predictor were trained separately, while my own parameters stayed fixed. Some "
        "tasks were held back, to test "
        "whether I can do new ones.",
    ),
    "app": (
        (
            "What does this app show?",
            "What is this page?",
            "How do I use this app?",
            "How do I use this page?",
            "What can I see here?",
            "What is this demo about?",
            "Explain this page",
            "What should I look at first?",
        ),
        "This page shows several ways to decode, side by side. Each panel gets the same prompt "
        "but makes its tokens in its own way: ordinary "
        "decoding, DMTD, MTP heads with CLP, and others. Type a question or choose an example, "
        "start, and watch. The colour of a "
        "token tells you where it came from. Compare how fast the panels are, how many full "
        "passes they need, and whether the texts agree. "
        "When a panel has finished, the audit tells you which tokens ordinary decoding would have "
        "chosen too. Then try a longer cycle and see "
        "what changes.",
    ),
    "colours": (
        (
            "What do the colours mean?",
            "What do the colors mean?",
            "Why are the tokens coloured?",
            "Explain the colours",
            "What is an origin?",
            "What does the origin of a token mean?",
            "Why do the words have different colors?",
            "Tell me about the three origins",
        ),
        "The colour of a token shows its origin, which means the computation that made it. There "
        "are three main origins. A full-pass token went "
        "through all layers of the model. A late-layer token was made by the late layers alone, "
        "as in DMTD. An MTP token "
        "was predicted ahead by an MTP head. Ordinary decoding shows only the first kind. In DMTD "
        "you can see the rhythm of the "
        "cycle, and with CLP the pattern changes with the text: easy places hold more MTP tokens. "
        "The colour says how a token was made, "
        "not whether it is right.",
    ),
    "mixed": (
        (
            "What is the mixed decoder?",
            "Explain the mixed decoder",
            "How does the mixed decoder work?",
            "Can DMTD and MTP heads be combined?",
            "What is adaptive DMTD?",
            "Can the cycle length change from place to place?",
        ),
        "DMTD can be carried further. In adaptive DMTD a tiny predictor looks at the hidden state "
        "of each full pass and chooses how long "
        "the cycle should be: long in easy places, short in hard ones. The mixed decoder adds MTP "
        "heads to this. It does a full pass, then some "
        "late-layer-only passes, and then takes tokens from the MTP heads, so one text can show "
        "all three origins. Before the text goes "
        "on, the next full pass also runs over the tokens that were skipped. Both are ideas tried "
        "out on this page, and their text "
        "may differ from ordinary decoding.",
    ),
    "who are you": (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself",
            "Are you a person?",
            "Are you a chatbot?",
            "Introduce yourself",
            "Who am I talking to?",
        ),
        "I am classroom, a small language model with about ten million parameters, trained on a "
        "small made-up world. I was made for this "
        "page, which shows how several tokens can be decoded for one full pass. I have twelve "
        "layers, and the last three of them have learned "
        "to write a few tokens on their own. I am not a person, and I know very little of the "
        "real world. But I am small enough to run on an "
        "ordinary computer, and you can watch every token that I write and see how it was made.",
    ),
    "what can you do": (
        (
            "What can you do?",
            "What can I ask you?",
            "How can you help me?",
            "What do you know?",
            "What are you good at?",
            "Give me some ideas what to ask",
            "What kind of questions can you answer?",
            "Help",
        ),
        "I can do a few small things. I tell short stories, work out sums of two-digit numbers, "
        "play word games such as sorting or "
        "counting words, and write short Python functions. I know a table of simple facts, such "
        "as capitals, planets, months and animals. And I "
        "can explain how language models work and what this page shows: ask me about tokens, "
        "attention, the KV cache, DMTD, MTP heads or "
        "CLP. Beyond that I know nothing of the world, so please do not ask me for news or "
        "advice. I am here to show how text is decoded.",
    ),
}
