"""Drives ComfyUI's own page in headless Chromium: opens a workflow, converts it, runs it, takes its picture.

    python workflows/frontend.py URL workflow.json [--ui OUT] [--api OUT] [--shot OUT.png] [--note NOTE.json] [--run]

The workflow may be in UI or API format. Prints one JSON object: node types that the page does not know, errors on its
console, the number of nodes, and with --run how the run ended. Needs chromium and aiohttp (which ComfyUI brings).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import aiohttp

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
READY = "!!(window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100)"

OPEN = """(async () => {
  const app = window.app, workflow = WORKFLOW, note = NOTE;
  const isApi = !Array.isArray(workflow.nodes);
  const types = isApi ? Object.values(workflow).map(n => n.class_type) : workflow.nodes.map(n => n.type);
  const known = window.LiteGraph.registered_node_types;
  const virtual = ['Note', 'MarkdownNote', 'Reroute', 'PrimitiveNode'];
  const missing = [...new Set(types.filter(t => !(t in known) && !virtual.includes(t)))];
  if (isApi) await app.loadApiJson(workflow, 'workflow'); else await app.loadGraphData(workflow, true, true);
  await new Promise(done => setTimeout(done, 1500));
  const byId = Object.fromEntries(app.graph._nodes.map(n => [n.id, n]));
  if (note) {
    let x = 460;
    for (const column of note.columns) {
      let y = 0;
      for (const id of column) {
        const node = byId[id], [width, height] = note.sizes[node.type] ?? [320, 0];
        node.size = [Math.max(node.size[0], width), Math.max(node.size[1], height)];
        node.pos = [x, y];
        y += node.size[1] + 70;
        if (note.models[node.type]) node.properties.models = note.models[node.type];
      }
      x += Math.max(...column.map(id => byId[id].size[0])) + 70;
    }
    const text = window.LiteGraph.createNode('MarkdownNote');
    text.title = note.title;
    text.widgets[0].value = note.text;
    text.size = [400, note.height];
    text.pos = [0, 0];
    app.graph.add(text);
  }
  const prompt = await app.graphToPrompt();
  const nodes = app.graph._nodes;
  const box = [Math.min(...nodes.map(n => n.pos[0])), Math.min(...nodes.map(n => n.pos[1])),
               Math.max(...nodes.map(n => n.pos[0] + n.size[0])), Math.max(...nodes.map(n => n.pos[1] + n.size[1]))];
  const width = window.innerWidth - 160, height = window.innerHeight - 160;
  const scale = Math.min(width / (box[2] - box[0]), height / (box[3] - box[1] + 60), 1);
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [100 / scale - box[0], 110 / scale - box[1]];
  app.canvas.setDirty(true, true);
  return {missing, nodes: nodes.length, ui: prompt.workflow, api: prompt.output};
})()"""

RUN = """(async () => {
  await window.app.queuePrompt(0, 1);
  const queue = async () => (await fetch('/api/queue')).json();
  for (let i = 0; i < 1200; i++) {
    await new Promise(done => setTimeout(done, 500));
    const {queue_running, queue_pending} = await queue();
    if (!queue_running.length && !queue_pending.length) break;
  }
  const history = Object.values(await (await fetch('/api/history?max_items=1')).json());
  await new Promise(done => setTimeout(done, 2500));
  const videos = [...document.querySelectorAll('video')].map(v => ({seconds: v.duration, width: v.videoWidth}));
  return {status: history.at(-1)?.status?.status_str, outputs: history.at(-1)?.outputs, videos};
})()"""


class Page:
    """A tab, spoken to over the DevTools protocol; collects errors of its console."""

    def __init__(self, socket):
        self.socket, self.calls, self.errors = socket, 0, []

    async def call(self, method: str, **params):
        self.calls += 1
        own = self.calls
        await self.socket.send_json({"id": own, "method": method, "params": params})
        async for message in self.socket:
            told = json.loads(message.data)
            self._listen(told)
            if told.get("id") == own:
                if "error" in told:
                    raise RuntimeError(told["error"])
                return told["result"]
        raise RuntimeError("the browser closed the connection")

    def _listen(self, told: dict) -> None:
        method, params = told.get("method"), told.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] == "error":
            words = [str(a.get("value", a.get("description", ""))) for a in params["args"]]
            self.errors.append(" ".join(words)[:300])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", {}).get("description"))[:300])

    async def js(self, expression: str):
        told = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"].get("exception", {}).get("description", told))
        return told["result"].get("value")

    async def picture(self, path: Path) -> None:
        png = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(png["data"]))


async def wait_for(condition, seconds: float = 90):
    """What `condition` returns as soon as it returns something."""
    for _ in range(int(seconds * 2)):
        try:
            if found := await condition():
                return found
        except (aiohttp.ClientError, RuntimeError, OSError, StopIteration, IndexError):
            pass
        await asyncio.sleep(0.5)
    raise RuntimeError("the page did not come up")


async def visit(url: str, size: str, work):
    """Start a browser, open ComfyUI's page, and hand it to `work(page)`."""
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no browser: install one of {', '.join(CHROMIUM)}")
    profile = tempfile.mkdtemp(prefix="frontend_")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", f"--window-size={size}"]
    flags += ["--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    browser = subprocess.Popen([program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with aiohttp.ClientSession() as session:
            settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
            await session.post(url + "/api/settings", json=settings)

            async def tab():
                port = Path(profile, "DevToolsActivePort").read_text().split()[0]
                tabs = await (await session.get(f"http://127.0.0.1:{port}/json")).json()
                return next(t for t in tabs if t["type"] == "page")["webSocketDebuggerUrl"]

            async with session.ws_connect(await wait_for(tab), max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Runtime", "Page"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=url)
                await wait_for(lambda: page.js(READY))
                await asyncio.sleep(1)
                return await work(page)
    finally:
        browser.terminate()
        browser.wait(15)
        shutil.rmtree(profile, ignore_errors=True)


async def show(args: argparse.Namespace) -> dict:
    async def work(page: Page) -> dict:
        workflow = json.loads(args.workflow.read_text("utf-8"))
        note = json.loads(args.note.read_text("utf-8")) if args.note else None
        page.errors.clear()
        script = OPEN.replace("WORKFLOW", json.dumps(workflow)).replace("NOTE", json.dumps(note))
        told = await page.js(script)
        ui, api = told.pop("ui"), told.pop("api")
        for path, content in ((args.ui, ui), (args.api, api)):
            if path:
                path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if args.run:
            told["run"] = await page.js(RUN)
        if args.shot:
            await asyncio.sleep(1)
            await page.picture(args.shot)
        return {**told, "errors": page.errors}

    return await visit(args.url, args.size, work)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--ui", type=Path, help="write the workflow in UI format")
    parser.add_argument("--api", type=Path, help="write the prompt that the page would send")
    parser.add_argument("--shot", type=Path, help="write a picture of the canvas")
    parser.add_argument("--note", type=Path, help="title, text and model files to add")
    parser.add_argument("--run", action="store_true", help="press Run and wait")
    parser.add_argument("--size", default="1800,1000")
    print(json.dumps(asyncio.run(show(parser.parse_args(argv)))))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")
    sys.exit(main())
