"""Several turns about one picture. The server keeps no conversation: every request holds all of it, picture included.

Nothing is computed twice for that: what the turns have in common is still in the server's prefix cache.

tilewise serve                    # first, in another terminal
python examples/several_turns.py
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
options = parser.parse_args()

data = base64.b64encode((PICTURES / "follow_up.png").read_bytes()).decode()
picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
client = OpenAI(base_url=options.base_url, api_key="none")
model = client.models.list().data[0].id

messages = []
for question in ("Where is the orange cross?", "And where is the square?", "And which shape is on the left?"):
    text = {"type": "text", "text": question}
    messages.append({"role": "user", "content": [text] if messages else [picture, text]})
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0)
    answer = reply.choices[0].message.content
    messages.append({"role": "assistant", "content": answer})
    details = reply.usage.prompt_tokens_details
    print(f"{question} {answer} ({details.cached_tokens} of {reply.usage.prompt_tokens} prompt tokens cached)")
