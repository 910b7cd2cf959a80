"""An answer as it is generated, and the tokens it took, which come last.

tilewise serve                    # first, in another terminal
python examples/streaming.py
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
options = parser.parse_args()

data = base64.b64encode((PICTURES / "color_and_shape.png").read_bytes()).decode()
client = OpenAI(base_url=options.base_url, api_key="none")
chunks = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "Which shape is on the left?"},
            ],
        }
    ],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in chunks:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage is not None:
        print(f"\n{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} answer tokens")
