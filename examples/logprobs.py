"""How sure the model is: the likeliest tokens at each place of an answer, with their probabilities.

tilewise serve                    # first, in another terminal
python examples/logprobs.py
"""

import argparse
import base64
import math
from pathlib import Path

from openai import OpenAI

PICTURES = Path(__file__).parent.parent / "src" / "tilewise" / "demo" / "pictures"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base-url", default="http://localhost:8000/v1")
options = parser.parse_args()

data = base64.b64encode((PICTURES / "reading_text.png").read_bytes()).decode()
client = OpenAI(base_url=options.base_url, api_key="none")
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "What is the word?"},
            ],
        }
    ],
    logprobs=True,
    top_logprobs=3,
    temperature=0,
)
for place in answer.choices[0].logprobs.content:
    print("  ".join(f"{each.token!r} {math.exp(each.logprob):.3f}" for each in place.top_logprobs))
