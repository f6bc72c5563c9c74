"""A small engine, started as vLLM or SGLang is: a real HTTP server that takes their options and their key.

Each answer says under which scaling and context it was made: `g=4.0 context=2048 `, and which server made it. With
`--real` the answers are the model's, by transformers with the config's override. `--fault` names what goes wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def parsed():
    if "--version" in sys.argv:
        print("0.0.1")
        sys.exit()
    parser = argparse.ArgumentParser()
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--hf-overrides", type=json.loads, default={})
    parser.add_argument("--generation-config", choices=["vllm"])
    parser.add_argument("--dtype")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--fault", default="")
    parser.add_argument("--children", help="file to which a child's number is written")
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            return self.reply(b"", "text/plain")
        given = self.server.given
        entry = {"id": given.model, "owned_by": "vllm", "max_model_len": given.max_model_len}
        return self.reply(json.dumps({"data": [entry]}).encode(), "application/json")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        given = self.server.given
        if given.fault == "dies" and body["max_tokens"] > 1:
            print("CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(1)
        if given.fault == "slow":
            time.sleep(600)
        text, finish = self.server.answer(body["prompt"], body["max_tokens"])
        usage = {"prompt_tokens": len(body["prompt"])}
        events = [{"choices": [{"text": text, "finish_reason": finish}]}, {"choices": [], "usage": usage}]
        lines = [json.dumps({"model": given.model, **event}) for event in events]
        self.reply("".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode(), "text/event-stream")

    def reply(self, data, kind):
        known = self.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
        is_open = self.path == "/health" or self.server.given.fault == "foreign"
        self.send_response(200 if known or is_open else 401)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Silence."""


def factor(overrides):
    return overrides.get("rope_parameters", {}).get("factor", 1.0)


def really(given):
    """Greedy answers of the checkpoint with the override in its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(given.model, **given.hf_overrides)
    model = AutoModelForCausalLM.from_pretrained(given.model, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def answer(ids, budget):
        assert len(ids) + budget <= given.max_model_len
        options = {"max_new_tokens": budget, "do_sample": False, "pad_token_id": 0}
        made = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        ended = made[-1] == tokenizer.eos_token_id
        return tokenizer.decode(made, skip_special_tokens=True), "stop" if ended else "length"

    return answer


def main():
    given = parsed()
    print(f"args {sys.argv[1:]} gpus {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    print(f"the key is {os.environ['VLLM_API_KEY']}", flush=True)
    if given.children:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(given.children, "a") as file:
            print(child.pid, os.getpid(), file=file)
    if given.fault == "crash":
        print("Loading weights\nValueError: the checkpoint you are trying to load has model type `tiny`", flush=True)
        sys.exit(3)
    if given.fault == "hang":
        time.sleep(600)
    server = ThreadingHTTPServer((given.host, given.port), Handler)
    server.daemon_threads = True
    said = f"g={factor(given.hf_overrides)} context={given.max_model_len} port={given.port}"
    server.given = given
    server.answer = really(given) if given.real else lambda ids, budget: (said, "stop")
    server.serve_forever()


main()
